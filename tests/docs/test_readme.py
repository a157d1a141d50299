"""Everything the README shows works as shown."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from stream_gru.bundle import load_bundle
from stream_gru.cli import COMMANDS
from stream_gru.metrics import Metrics
from stream_gru.prediction import Prediction
from stream_gru.types import DropReason, ResetReason

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# File names under which the walk saves the configurations it shows, in their order.
CONFIGURATIONS = ["sine.toml", "live.toml"]
# Run by what runs these tests, or too long to be run inside them.
NOT_HERE = {"make demo", "make test"}


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_the_walk_works_as_printed(tmp_path: Path) -> None:
    """Every shell block runs, in order, in one folder, with the configurations shown in between."""
    pytest.importorskip("tensorflow")
    for name, text in zip(CONFIGURATIONS, blocks("toml"), strict=True):
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in blocks("sh"):
        if block.strip() in NOT_HERE:
            continue
        done = subprocess.run(
            ["sh", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, block + done.stderr
    assert len((tmp_path / "forecasts.jsonl").read_text().splitlines()) == 3600
    assert (tmp_path / "live.jsonl").read_text()


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples_run(block: str, tmp_path: Path) -> None:
    """Every Python block runs as it stands, in a folder with the sample data."""
    shutil.copytree(ROOT / "sample_data" / "pump.bundle", tmp_path / "sample_data" / "pump.bundle")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_row_of_output_has_the_keys_of_a_row() -> None:
    """The JSON that is shown has the keys that are written."""
    shown = msgspec.json.decode(blocks("json")[0])
    written = Prediction("s", "t", "ok", "m", {"x": [1]}, {"x": [(0, 1)]}, 0.9, "a", {"a": 1.0}).as_dict()
    assert list(shown) == list(written)


def test_every_command_is_in_the_readme() -> None:
    """No command is a secret."""
    for name in COMMANDS:
        assert f"`stream-gru {name}" in README


def test_every_metric_is_in_the_readme_and_no_other() -> None:
    """The table of metrics is that of the code."""
    bundle = load_bundle(ROOT / "sample_data" / "pump.bundle")
    metrics = Metrics(CollectorRegistry(), bundle.manifest, "litert", "0")
    families = [f for f in metrics.registry.collect() if f.name.startswith("stream_gru")]
    suffix = {"counter": "_total", "info": "_info"}
    names = {family.name + suffix.get(family.type, "") for family in families}
    assert set(re.findall(r"`(stream_gru_\w+)", README)) == names


def test_every_reason_is_in_the_readme() -> None:
    """Why a sample is dropped and why a state is reset is explained."""
    for reason in [*DropReason, *(reason for reason in ResetReason if reason)]:
        assert f"`{reason.text}`" in README, reason


def test_every_target_of_the_makefile_that_the_readme_names_exists() -> None:
    """`make x` in the README is a target."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
