"""Each block on a page is run or checked by some test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from stream_gru.core.prediction import Prediction
from tests.docs.pages import GUIDES, NOT_RUN, WRITTEN, blocks, environment, files
from tests.support.paths import ROOT

LANGUAGES = {"sh", "toml", "python", "json", "text"}
# A part of a configuration is checked together with the tables that it lacks.
MISSING = {
    "[run]": '[run]\nbundle = "sample_data/pump.bundle"\n',
    "[[source]]": '[[source]]\ntype = "stdin"\nformat = "jsonl"\n',
    "[[sink]]": '[[sink]]\ntype = "stdout"\n',
    "[[broker]]": '[[broker]]\nurl = "mqtt://127.0.0.1:1883"\n',
}


def of_all(language: str) -> list[object]:
    """Every block of a language, as parameters of a test."""
    found = ((page, enumerate(blocks(page, language), 1)) for page in WRITTEN)
    return [pytest.param(block, id=f"{page}-{number}") for page, each in found for number, block in each]


def test_every_block_has_a_language_that_some_test_understands() -> None:
    """No block is skipped because of its language, or for lack of one."""
    for page, text in WRITTEN.items():
        assert set(re.findall(r"^```(\S*)\n.*?^```$", text, re.DOTALL | re.MULTILINE)) <= LANGUAGES, page


def test_every_page_with_commands_is_walked() -> None:
    """A test beside this one walks each page that has a shell block; each guide has a test of its own."""
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for page in WRITTEN:
        if any(block not in NOT_RUN for block in blocks(page, "sh")):
            assert f'walk("{page}"' in tests, page
    for guide in GUIDES:
        assert Path(guide).name in tests, guide


@pytest.mark.parametrize("block", of_all("python"))
def test_python_examples_run(block: str, tmp_path: Path) -> None:
    """Every Python block runs unchanged, in a folder with the sample data."""
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", of_all("toml"))
def test_configurations_are_valid(block: str, tmp_path: Path) -> None:
    """Each is a whole file, which its page's walk uses, or a part that a whole file may have."""
    if any(block == text for page in WRITTEN for text in files(page).values()):
        return
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "one.csv").touch()
    (tmp_path / "influx.token").write_text("secret")
    (tmp_path / "influx.token").chmod(0o600)
    path = tmp_path / "part.toml"
    path.write_text(block + "".join(text for table, text in MISSING.items() if table not in block))
    done = subprocess.run(
        [sys.executable, "-m", "stream_gru", "check", str(path)], env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_row_of_output_has_the_keys_of_a_row() -> None:
    """The JSON that is shown has the keys that are written, and each key is explained."""
    shown = msgspec.json.decode(blocks("docs/sinks.md", "json")[0])
    written = Prediction("s", "t", "ok", "m", {"x": [1]}, {"x": [(0, 1)]}, 0.9, "a", {"a": 1.0}).as_dict()
    assert list(shown) == list(written)
    explained = WRITTEN["docs/sinks.md"].partition("| key | meaning |")[2].partition("\n\n")[0]
    for key in (*written, "seq", "alarm"):
        assert f"`{key}`" in explained, key
