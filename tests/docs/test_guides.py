"""Each guide's package is built from the guide, installed as a distribution, and used as printed."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, blocks, environment
from tests.support.paths import ROOT

GUIDE = "docs/contributing/add-a-{}.md"
INSTALL = "pip install .\n"
# Its port may be in use.
NO_SERVER = "\n[metrics]\nenabled = false\n"


def follow(page: str, folder: Path) -> str:
    """Save the files of a guide, install its package into its own folder, run its commands; return their output."""
    for language in ("toml", "python"):
        for text in blocks(page, language):
            name = text.partition("\n")[0].removeprefix("# ")
            assert re.fullmatch(r"[\w.]+", name), name
            (folder / name).write_text(text + NO_SERVER * ("[run]" in text))
    (script,) = blocks(page, "sh")
    assert INSTALL in script
    before, after = script.split(INSTALL)
    shell(before, folder)
    install(folder)
    return shell(after, folder)


def install(package: Path) -> None:
    """Install a package beside the environment of this process."""
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
            "--target", str(package / "site"), ".",
        ],
        cwd=package, check=True, capture_output=True, text=True,
    )  # fmt: skip


def shell(script: str, folder: Path) -> str:
    """Run commands as a reader does, with the installed package; return their output."""
    path = os.pathsep.join([str(folder / "site"), str(ROOT)])
    env = {**environment(), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_source_from_outside(tmp_path: Path) -> None:
    """add-a-source.md: a command's lines become outputs, and `check`, `doctor` and `config` know the plugin."""
    printed = follow(GUIDE.format("source"), tmp_path)
    assert "demo.toml: ok (running, model " in printed
    assert ", source command of command-source 1.0)" in printed
    rows = [json.loads(line) for line in (tmp_path / "outputs.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["pump-1/2026-03-01T00:00:00Z", "pump-1/2026-03-01T00:00:01Z"]
    assert "a command repeats nothing" in printed
    assert '"command"' in shell("stream-gru config show demo.toml", tmp_path)
    doctor = shell("stream-gru doctor demo.toml || true", tmp_path)
    assert "plugin source command" in doctor
    assert "command-source 1.0: command_source:CommandSourceConfig" in doctor


def test_a_decoder_from_outside(tmp_path: Path) -> None:
    """add-a-decoder.md: lines of another format are read, and an invalid one is counted."""
    printed = follow(GUIDE.format("decoder"), tmp_path)
    assert ", decoder logfmt of logfmt-decoder 1.0)" in printed
    rows = [json.loads(line) for line in (tmp_path / "outputs.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["p1/2026-03-01T00:00:00Z", "p1/2026-03-01T00:00:01Z"]
    assert re.search(r"dropped.*1.*parse|parse.*1", printed)


def test_a_sink_from_outside(tmp_path: Path) -> None:
    """add-a-sink.md: throttled outputs are in the database; a rule of the table is reported with its line."""
    printed = follow(GUIDE.format("sink"), tmp_path)
    assert ", sink sqlite of sqlite-sink 1.0)" in printed
    with closing(sqlite3.connect(tmp_path / "outputs.db")) as database:
        rows = [json.loads(text) for (text,) in database.execute("SELECT output FROM outputs ORDER BY id")]
    assert [row["id"] for row in rows] == ["p1/2026-03-01T00:00:00Z", "p1/2026-03-01T00:01:00Z"]
    wrong = (tmp_path / "demo.toml").read_text().replace('path = "outputs.db"', 'path = "outputs.db"\ntable = "a b"')
    (tmp_path / "wrong.toml").write_text(wrong)
    expected = "wrong.toml:12: sink[1].table: expected letters, digits and _, got 'a b'"
    assert expected in shell("stream-gru check wrong.toml || true", tmp_path)


def test_an_engine_from_outside(tmp_path: Path) -> None:
    """add-an-engine.md: a replay by command and by configuration give the same outputs."""
    pytest.importorskip("ai_edge_litert")
    printed = follow("docs/contributing/add-an-engine.md", tmp_path)
    assert ", engine checked of checked-engine 1.0)" in printed
    outputs = (tmp_path / "outputs.jsonl").read_bytes()
    assert outputs
    assert outputs == (tmp_path / "replayed.jsonl").read_bytes()
    assert "engine checked" in shell("stream-gru doctor demo.toml || true", tmp_path)
    unknown = shell("stream-gru replay x y --engine other 2>&1 || true", tmp_path)
    assert "numpy, onnx, keras, checked, got 'other'" in unknown


def write_distribution(folder: Path, name: str, entry_points: str, module: str = "") -> None:
    """A distribution as pip installs it: its metadata, and optionally a module."""
    info = folder / "site" / f"{name}-2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    if module:
        (folder / "site" / f"{name}.py").write_text(module)


DEMO = """
[run]
bundle = "sample_data/pump.bundle"
[[source]]
type = "stdin"
format = "jsonl"
[[sink]]
type = "stdout"
[metrics]
enabled = false
"""


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A folder with a configuration that uses no plugin."""
    (tmp_path / "demo.toml").write_text(DEMO)
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    return tmp_path


def test_a_plugin_never_takes_the_place_of_ours(demo: Path) -> None:
    """A plugin with a built-in name is ignored, with a warning that names its distribution."""
    write_distribution(demo, "thief", "[stream_gru.sources]\nstdin = no_such_module:Thief\n")
    warning = "plugin thief 2.0: source 'stdin' is ignored: the name is built in; rename the entry point"
    assert warning in shell("stream-gru check demo.toml", demo)
    assert warning in shell("stream-gru run demo.toml < /dev/null", demo)
    assert "thief 2.0: ignored, as 'stdin' is built in" in shell("stream-gru doctor demo.toml || true", demo)


def test_a_broken_plugin_stops_only_who_uses_it(demo: Path) -> None:
    """The daemon runs, the doctor reports why it does not load, and a file that uses it is refused with its line."""
    write_distribution(
        demo, "broken", "[stream_gru.sources]\nbroken = broken:Source\n", "raise RuntimeError('out of order')\n"
    )
    shell("stream-gru check demo.toml && stream-gru run demo.toml < /dev/null", demo)
    why = "source: broken of broken 2.0 cannot be loaded (RuntimeError: out of order)"
    assert why in shell("stream-gru doctor demo.toml || true", demo)
    (demo / "uses.toml").write_text(DEMO.replace('"stdin"', '"broken"'))
    printed = shell("stream-gru check uses.toml || true", demo)
    assert "uses.toml:5: source[1].type: expected a type that can be loaded, got " in printed
    assert why in printed


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("Source = 5\n", "expected a subclass of SourceTable, got 5"),
        (
            "from stream_gru import SourceTable\nclass Source(SourceTable, frozen=True, tag='other'): pass\n",
            "expected tag='odd' in class Source, as its entry point is called, got tag='other'",
        ),
    ],
)
def test_a_plugin_that_is_no_table_is_refused(demo: Path, module: str, words: str) -> None:
    """By `check` and by the doctor."""
    write_distribution(demo, "odd", "[stream_gru.sources]\nodd = odd:Source\n", module)
    (demo / "uses.toml").write_text(DEMO.replace('"stdin"', '"odd"'))
    assert words in shell("stream-gru check uses.toml || true", demo)
    assert words in shell("stream-gru doctor || true", demo)


def test_two_plugins_of_one_name_are_refused(demo: Path) -> None:
    """The choice is ambiguous: only a configuration that uses the name is refused."""
    for name in ("first", "second"):
        write_distribution(demo, name, "[stream_gru.decoders]\nours = no_such_module:Decoder\n")
    shell("stream-gru check demo.toml", demo)
    (demo / "uses.toml").write_text(DEMO.replace('"jsonl"', '"ours"'))
    assert "format: ours is offered by first 2.0 and second 2.0; uninstall one of them" in shell(
        "stream-gru check uses.toml || true", demo
    )


def test_an_unknown_type_names_the_plugins_too(demo: Path) -> None:
    """With file and line."""
    write_distribution(demo, "more", "[stream_gru.sinks]\nextra = no_such_module:Sink\n")
    (demo / "uses.toml").write_text(DEMO.replace('"stdout"', '"nowhere"'))
    assert (
        'uses.toml:8: sink[1].type: expected one of "extra", "file", "influx", "mqtt", "stdout", got "nowhere"'
        in shell("stream-gru check uses.toml || true", demo)
    )


def test_every_guide_is_followed() -> None:
    """Each has a test above."""
    tests = Path(__file__).read_text()
    for page in PAGES:
        if page.startswith("docs/contributing/add-"):
            assert Path(page).name in tests, page
