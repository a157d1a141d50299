"""Files as files: reading, bounds, encoding, paths and purposes."""

import subprocess
import sys
from pathlib import Path

import pytest

from stream_gru.config import (
    Config,
    check_purpose,
    load_config,
    parse_config,
    require_running,
    require_training,
    resolve_paths,
    sample_config,
)
from stream_gru.config.load import MAX_FILE_BYTES
from stream_gru.connectors.registry import CATALOG
from stream_gru.connectors.sinks.file import FileSinkConfig
from stream_gru.connectors.sinks.stdout import StdoutSinkConfig
from stream_gru.connectors.sources.files import ReplaySourceConfig
from stream_gru.core.errors import ConfigError

BOTH = """
training.tensorboard = "curves"
[[channel]]
name = "flow"
[data]
files = ["pump.csv", "/srv/old.csv"]
period_s = 1
[model.forecast]
[run]
bundle = "pump.bundle"
[[source]]
type = "replay"
files = ["live/*.csv"]
[[sink]]
type = "stdout"
[[sink]]
type = "file"
path = "out/predictions.csv.gz"
"""


def raw_file(folder: Path, raw: bytes) -> Path:
    """Return the path of a file with these bytes."""
    path = folder / "pump.toml"
    path.write_bytes(raw)
    return path


def problems(path: Path) -> tuple[str, ...]:
    """Return the problems of loading the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, CATALOG)
    return caught.value.problems


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    """A file without a key is a valid configuration, but serves neither purpose."""
    config = load_config(raw_file(tmp_path, b""), CATALOG)
    assert config == Config()
    assert check_purpose(config) == ()


def test_a_mark_of_byte_order_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    """A file saved by an editor on Windows is valid."""
    assert load_config(raw_file(tmp_path, b"\xef\xbb\xbf[training]\r\nepochs = 3\r\n"), CATALOG).training.epochs == 3


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    """A missing file is reported with its name and the reason of the system."""
    path = tmp_path / "absent.toml"
    assert problems(path) == (f"{path}:1: expected a readable file, got: No such file or directory",)


def test_a_folder_is_a_problem(tmp_path: Path) -> None:
    """A folder in place of a file is reported as a problem, not raised as an OSError."""
    assert problems(tmp_path) == (f"{tmp_path}:1: expected a readable file, got: Is a directory",)


def test_a_file_of_another_encoding_is_a_problem(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are reported with their line."""
    path = raw_file(tmp_path, b'[[channel]]\nname = "flow"\nunit = "\xb0C"\n')
    assert problems(path) == (f"{path}:3: expected UTF-8 text, got byte 0xb0",)


def test_a_file_may_be_as_large_as_the_bound_and_not_larger(tmp_path: Path) -> None:
    """One byte more than the bound is refused before the file is parsed."""
    load_config(raw_file(tmp_path, b"#" * MAX_FILE_BYTES), CATALOG)
    path = raw_file(tmp_path, b"#" * (MAX_FILE_BYTES + 1))
    assert problems(path) == (f"{path}:1: expected at most 1048576 bytes, got more",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a = " + "[" * 5000 + "]" * 5000, "f.toml:1: expected lists and tables, got too many levels"),
        ("a = " + "9" * 5000, "f.toml:1: expected integers of 64 bits, got one of thousands of digits"),
        ("a = [\n1\n", "f.toml:2:2: not valid TOML: Unclosed array"),
        ("\n[a\n", "f.toml:2:3: not valid TOML: Expected ']' at the end of a table declaration"),
    ],
)
def test_what_tomllib_cannot_read_is_a_problem_with_a_place(text: str, problem: str) -> None:
    """Any error of tomllib becomes one line."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f.toml", CATALOG)
    assert caught.value.problems == (problem,)


def test_an_integer_serves_where_a_number_is_asked_for() -> None:
    """``period_s = 1`` is the number 1.0."""
    data = parse_config('[data]\nfiles = ["a.csv"]\nperiod_s = 1', "f.toml", CATALOG).data
    assert data is not None
    assert isinstance(data.period_s, float)


def test_paths_are_relative_to_the_folder_of_the_file(tmp_path: Path) -> None:
    """All five kinds of paths are joined to the folder; an absolute one stays."""
    config = load_config(raw_file(tmp_path, BOTH.encode()), CATALOG)
    assert config.data is not None
    assert config.run is not None
    (source,) = config.source
    assert isinstance(source, ReplaySourceConfig)
    assert config.data.files == [f"{tmp_path}/pump.csv", "/srv/old.csv"]
    assert config.run.bundle == f"{tmp_path}/pump.bundle"
    assert source.files == [f"{tmp_path}/live/*.csv"]
    assert config.sink == [StdoutSinkConfig(), FileSinkConfig(path=f"{tmp_path}/out/predictions.csv.gz")]
    assert config.training.tensorboard == f"{tmp_path}/curves"


def test_an_empty_path_stays_empty() -> None:
    """No folder for TensorBoard means none, not the folder of the file."""
    assert resolve_paths(Config(), Path("/etc/stream_gru")) == Config()


def test_parse_leaves_paths_alone() -> None:
    """Text has no folder, so its paths stay as written."""
    run = parse_config(BOTH, "f.toml", CATALOG).run
    assert run is not None
    assert run.bundle == "pump.bundle"


def test_a_file_can_serve_both_purposes() -> None:
    """A file with the tables for training and running passes both checks."""
    config = parse_config(BOTH, "f.toml", CATALOG)
    assert check_purpose(config) == ("training", "running")
    require_training(config, "f.toml")
    require_running(config, "f.toml")


def test_missing_parts_of_training_are_reported_table_by_table() -> None:
    """Each missing table that training needs is one problem."""
    with pytest.raises(ConfigError) as caught:
        require_training(parse_config(sample_config("run", CATALOG), "run.toml", CATALOG), "run.toml")
    assert caught.value.problems == (
        "run.toml:1: channel: expected at least one [[channel]] table for training, got none",
        "run.toml:1: data: expected a [data] table for training, got none",
        "run.toml:1: model: expected a [model] table for training, got none",
    )


def test_missing_parts_of_running_are_reported_table_by_table() -> None:
    """Each missing table that a run needs is one problem."""
    with pytest.raises(ConfigError) as caught:
        require_running(parse_config(sample_config("train", CATALOG), "train.toml", CATALOG), "train.toml")
    assert caught.value.problems == (
        "train.toml:1: run: expected a [run] table for running, got none",
        "train.toml:1: source: expected at least one [[source]] table for running, got none",
        "train.toml:1: sink: expected at least one [[sink]] table for running, got none",
    )


@pytest.mark.parametrize(
    "text",
    [
        '[split]\nby = "stream"\nvalidation_streams = ["pump-2"]\ntest_streams = ["pump-*"]\nvalidation = 0.9',
        '[split]\nvalidation_from = "2026-03-05"\ntest_from = "2026-03-05T06:00:00+02:00"\nuntil = "20260306T000000Z"',
        '[training]\nwindow = 4\nwarm_up = 9\nregime = "stateful"',
        '[training]\nwindow = 16\nregime = "windowed"\nwarm_up = 99\nwindow_loss = "last"',
        "[model.forecast]\nquantiles = [0.1, 0.5, 0.9]",
        '[model.forecast]\ntargets = ["flow"]',
        '[[model.layer]]\ncell = "lstm"\nrecurrent_activation = "hard_sigmoid"\n[model.forecast]',
        '[[sink]]\ntype = "file"\npath = "a.csv"\n[[sink]]\ntype = "file"\npath = "a.csv.gz"',
        '[metrics]\nlisten = "[::]:0"',
    ],
)
def test_what_makes_sense_is_accepted(text: str) -> None:
    """The rules reject no meaningful value."""
    assert isinstance(parse_config(text, "f.toml", CATALOG), Config)


def test_the_room_needs_msgspec_and_nothing_heavier() -> None:
    """The modules of the package import no numpy, no rich, no click."""
    folder = Path(sys.modules["stream_gru.config"].__file__ or "").parent
    code = (
        "import sys, types\n"
        "package = types.ModuleType('stream_gru')\n"
        f"package.__path__ = [{str(folder.parent)!r}]\n"
        "sys.modules['stream_gru'] = package\n"
        "import stream_gru.config\n"
        "print(*sorted({'numpy', 'rich', 'click', 'tensorflow', 'prometheus_client'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
