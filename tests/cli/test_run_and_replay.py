"""``run`` and ``replay``: rejected inputs, warnings, and the names of columns."""

from __future__ import annotations

import gzip
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from stream_gru.config import parse_config
from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import CATALOG
from stream_gru.connectors.sinks.encoders import JsonEncoder
from stream_gru.connectors.sinks.stdout import StdoutSink
from stream_gru.core.errors import ConfigError, SinkUnavailable
from stream_gru.model.bundle import Bundle, document_digest, load_bundle
from stream_gru.model.manifest import Manifest
from stream_gru.runtime.resolved_config import running_fields
from tests.support.cli import PUMP_HEADER, run_command, run_here
from tests.support.paths import BUNDLE

ROW = "2026-03-01T00:00:0{},p,100,300,5,1.5,normal\n"
CHANNEL_TABLES = '[[channel]]\nname = "{}"\n{}\n' + "".join(
    f'[[channel]]\nname = "{name}"\n' for name in ("pressure", "current", "vibration")
)
STDIN = '[[source]]\ntype = "stdin"\nformat = "csv"\n'


def run_file(folder: Path, source: str = STDIN, more: str = "") -> Path:
    """A configuration for ``run`` on the sample bundle."""
    path = folder / "run.toml"
    path.write_text(
        f'{more}[run]\nbundle = "{BUNDLE}"\n{source}[[sink]]\ntype = "stdout"\n[metrics]\nenabled = false\n'
    )
    return path


def run_fields(text: str, bundle: Bundle | None = None) -> Fields:
    """The fields that ``run`` reads with this configuration."""
    return running_fields(parse_config(text, "run.toml", CATALOG), bundle or load_bundle(BUNDLE), Path("run.toml"))


def test_input_keys_override_those_of_the_bundle() -> None:
    """Each key overrides its own; a key set to its default has no effect."""
    trained = load_bundle(BUNDLE).manifest.input
    assert run_fields("").input == trained
    assert run_fields('[input]\ndelimiter = ";"\n').input == replace(trained, delimiter=";")
    assert run_fields('[input]\nstream = "device"\ntime = "time"\n').input == replace(trained, stream="device")
    assert trained.stream == "pump"
    assert trained != InputConfig()


def test_a_channel_without_a_column_keeps_that_of_the_bundle() -> None:
    """Only the keys that are set override those of the bundle."""
    bundle = load_bundle(BUNDLE)
    bundle.manifest.channels[0] = replace(bundle.manifest.channels[0], column="FT-101")
    assert run_fields(CHANNEL_TABLES.format("flow", ""), bundle).columns[0] == "FT-101"
    assert run_fields(CHANNEL_TABLES.format("flow", 'column = "FT-7"'), bundle).columns == (
        "FT-7", "pressure", "current", "vibration",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ('unit = "m3/h"', "expected unit = 'L/min' for 'flow', as trained, got 'm3/h'"),
        ("min = 1000.0", "expected min = -5.0 for 'flow', as trained, got 1000.0"),
        ("max = 900", "expected max = 1000.0 for 'flow', as trained, got 900.0"),
    ],
)
def test_units_and_ranges_must_be_those_of_training(key: str, words: str) -> None:
    """Another unit or range is rejected; repeating the same one is allowed."""
    with pytest.raises(ConfigError) as caught:
        run_fields(CHANNEL_TABLES.format("flow", key))
    assert str(caught.value) == f"run.toml: channel: {words}"
    same = CHANNEL_TABLES.format("flow", 'unit = "L/min"\nmin = -5\nmax = 1000')
    assert run_fields(same).columns == ("flow", "pressure", "current", "vibration")


def test_every_channel_of_the_model_is_required() -> None:
    """All problems are reported, each with its channel."""
    with pytest.raises(ConfigError) as caught:
        run_fields(CHANNEL_TABLES.format("pump_flow", "").replace('"current"\n', '"current"\nunit = "mA"\n'))
    assert caught.value.problems == (
        "run.toml: channel: expected the bundle's channel 'flow' among them",
        "run.toml: channel: expected unit = 'A' for 'current', as trained, got 'mA'",
    )


@pytest.mark.parametrize("name", ["feed", "output", "control", "broadcast"])
def test_a_sink_of_any_name_is_written(tmp_path: Path, name: str) -> None:
    """Internal parts do not share the names of sinks."""
    rows = PUMP_HEADER + ROW.format(0) + ROW.format(1)
    sink = f'[[sink]]\ntype = "file"\nname = "{name}"\npath = "out.jsonl"\n'
    listen = '[metrics]\nlisten = "127.0.0.1:0"\n'
    (tmp_path / "run.toml").write_text(f'[run]\nbundle = "{BUNDLE}"\n{STDIN}{sink}{listen}')
    done = run_command("run", tmp_path / "run.toml", stdin=rows, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2


def test_closed_standard_input_is_rejected(tmp_path: Path) -> None:
    """Exit code 2 at once, since it cannot open again."""
    done = run_command("run", run_file(tmp_path), stdin=None)
    assert done.returncode == 2
    assert "standard input: expected lines, got a closed descriptor" in done.stderr


def test_a_missing_recording_is_an_error(tmp_path: Path) -> None:
    """Exit code 1 with the name of the file, without a retry."""
    done = run_command("run", run_file(tmp_path, '[[source]]\ntype = "replay"\nfiles = ["gone.csv"]\n'))
    assert done.returncode == 1
    assert f"{tmp_path}/gone.csv: no such file" in done.stderr


@pytest.mark.parametrize("pattern", ["*.csv", "p*"])
def test_run_and_replay_expand_the_same_patterns(tmp_path: Path, pattern: str) -> None:
    """Both commands write the same bytes for the same pattern."""
    for second in range(3):
        (tmp_path / f"p{second}.csv").write_text(PUMP_HEADER + ROW.format(f"{second}Z"))
    done = run_command("run", run_file(tmp_path, f'[[source]]\ntype = "replay"\nfiles = ["{pattern}"]\n'))
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3
    assert done.stdout == run_here("replay", BUNDLE, tmp_path / pattern).stdout


def test_a_wrong_header_is_an_error_and_empty_input_is_not(tmp_path: Path) -> None:
    """Input that ends after an unusable header fails; input without a byte ends normally."""
    done = run_command("run", run_file(tmp_path), stdin="a,b\n")
    assert done.returncode == 1
    assert "stdin: expected a column 'time' in the header, got a, b" in done.stderr
    for text in ("", PUMP_HEADER, PUMP_HEADER + "rubbish\n"):
        assert run_command("run", run_file(tmp_path), stdin=text).returncode == 0


def test_unnamed_columns_are_ignored_live_and_in_replay(tmp_path: Path) -> None:
    """A column of row numbers without a name is ignored from a pipe and from a file."""
    text = PUMP_HEADER + "".join(f'"{140 + i}",{ROW.format(f"{i}Z")}' for i in range(3))
    (tmp_path / "p.csv").write_text(text)
    live = run_command("run", run_file(tmp_path), stdin=text)
    assert len(live.stdout.splitlines()) == 3
    assert live.stdout == run_here("replay", BUNDLE, tmp_path / "p.csv").stdout


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", PUMP_HEADER, "a.csv: expected at least one valid sample, got no rows"),
        ("a.jsonl", "", "a.jsonl: expected at least one valid sample, got no rows"),
        ("a.jsonl", "rubbish\n[]\n", "a.jsonl: expected at least one valid sample, got 1 parse, 1 type"),
        ("a.csv", "", "a.csv: expected a header of CSV names, got an empty file"),
        ("a.csv", "a,b\n", "a.csv: expected a column 'time' in the header, got a, b"),
        (
            "a.csv",
            PUMP_HEADER.replace("\n", "\r") + ROW.format("0Z"),
            "a.csv: expected lines that end with LF or CR LF",
        ),
    ],
)
def test_a_replay_without_applied_rows_fails(tmp_path: Path, name: str, text: str, words: str) -> None:
    """All rows dropped, no rows, no header or a wrong one: exit code 1 and one line."""
    (tmp_path / name).write_bytes(text.encode())
    for options in ([], ["-q"], ["--json"]):
        done = run_here("replay", BUNDLE, name, *options, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"stream-gru: {words}")


def test_a_folder_is_rejected_as_a_recording(tmp_path: Path) -> None:
    """The message says what is expected."""
    done = run_here("replay", BUNDLE, tmp_path)
    assert (done.returncode, done.stderr) == (1, f"stream-gru: {tmp_path}: is a folder; expected files\n")


def test_file_suffixes_are_case_insensitive(tmp_path: Path) -> None:
    """A compressed table from Windows is accepted."""
    (tmp_path / "P.CSV.GZ").write_bytes(gzip.compress((PUMP_HEADER + ROW.format("0Z")).encode()))
    assert len(run_here("replay", BUNDLE, tmp_path / "P.CSV.GZ").stdout.splitlines()) == 1


def test_files_that_share_a_stream_are_reported(tmp_path: Path) -> None:
    """Without a stream column, files of the same name are one stream; both commands warn before reading."""
    bundle = tmp_path / "b.bundle"
    nameless_bundle(bundle)
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.csv").write_text(PUMP_HEADER + ROW.format("0Z"))
    config = run_file(tmp_path, '[[source]]\ntype = "replay"\nfiles = ["*/p.csv"]\n')
    config.write_text(config.read_text().replace(str(BUNDLE), str(bundle)))
    words = f"warning: {tmp_path}/a/p.csv and {tmp_path}/b/p.csv are read as one stream 'p'"
    for done in (run_command("run", config), run_here("replay", bundle, tmp_path / "*" / "p.csv")):
        assert done.returncode == 0
        assert done.stderr.count("warning") == 1
        assert words in done.stderr
    assert "warning" not in run_here("replay", BUNDLE, tmp_path / "*" / "p.csv").stderr


def nameless_bundle(path: Path) -> None:
    """The sample bundle without a stream column."""
    shutil.copytree(BUNDLE, path)
    manifest = msgspec.json.decode((path / "manifest.json").read_bytes(), type=Manifest)
    manifest = replace(manifest, input=replace(manifest.input, stream=""))
    manifest = replace(manifest, digest=document_digest(msgspec.to_builtins(manifest)))
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def test_closed_standard_output_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an unavailable sink, not a bug."""
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SinkUnavailable, match="standard output: closed"):
        StdoutSink(JsonEncoder()).open(None)
