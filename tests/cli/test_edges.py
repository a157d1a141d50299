"""The command line in a hostile environment: early signals, unwritable outputs and odd options."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from stream_gru.cli.bench import free_name, header_of, pipeline_rows
from stream_gru.cli.bundle import describe
from stream_gru.model.bundle import load_bundle, write_bundle
from stream_gru.model.engines.registry import load_engine
from tests.support.cli import PUMP_HEADER, pump_rows, run_here
from tests.support.models import make_bundle
from tests.support.paths import BUNDLE, ROOT


def sh(text: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell line in which ``$S`` is the command and ``$B`` a bundle; a traceback is a failure."""
    done = subprocess.run(
        ["sh", "-c", text],
        env={
            "S": f"{sys.executable} -m stream_gru",
            "B": str(BUNDLE),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        },
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.fixture
def short_recording(tmp_path: Path) -> Path:
    """Three minutes of one pump with a single class."""
    path = tmp_path / "p.csv"
    path.write_text(PUMP_HEADER + pump_rows(180))
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("$S inspect $B > /dev/full", "standard output or a file: No space left on device"),
        ("$S evaluate $B p.csv --json > /dev/full", "standard output or a file: No space left on device"),
        ("$S --help > /dev/full", "standard output or a file: No space left on device"),
        ("$S replay $B p.csv -q > /dev/full", "standard output: cannot be written: No space left on device"),
        ("$S inspect $B >&-", "standard output or a file: Bad file descriptor"),
        ("$S replay $B p.csv -q >&-", "standard output: cannot be written: Bad file descriptor"),
        ("$S simulate sine --hours 0.01 --out /proc/x", "/proc/x: No such file or directory"),
        ("$S simulate sine --hours 0.01 --out p.csv", "p.csv: File exists"),
    ],
)
def test_unwritable_output_is_one_line(short_recording: Path, line: str, words: str) -> None:
    """A full disk, a closed output or an impossible path gives one line and exit code 1."""
    done = sh(line, short_recording.parent)
    assert done.returncode == 1
    assert done.stderr == f"stream-gru: {words}\n"


def test_a_closed_standard_output_does_not_harm_a_file(short_recording: Path) -> None:
    """Results go to their file, whichever descriptors are free."""
    assert sh("$S replay $B p.csv --out a.jsonl >&- 2>&-", short_recording.parent).returncode == 0
    assert sh("$S replay $B p.csv --out b.jsonl -q", short_recording.parent).returncode == 0
    assert (short_recording.parent / "a.jsonl").read_bytes() == (short_recording.parent / "b.jsonl").read_bytes()
    assert sh("$S inspect nowhere 2> /dev/full", short_recording.parent).returncode == 2


@pytest.mark.parametrize(
    "line",
    [
        *(
            f"replay $B p.csv {option} {value}"
            for option in ("--interval-level", "--speed")
            for value in ("nan", "inf")
        ),
        *(f"demo --speed {value}" for value in ("nan", "inf")),
        *(f"simulate sine --out x --hours {value}" for value in ("nan", "inf", "1e9")),
        *(f"bench $B --seconds {value}" for value in ("nan", "inf")),
        "evaluate $B p.csv --window 5",
        "evaluate $B p.csv --window 5 --regime stateful",
    ],
)
def test_invalid_option_values_are_usage_errors(short_recording: Path, line: str) -> None:
    """A number that is not finite, or an option that needs another one, is rejected by name with exit code 2."""
    done = run_here(*line.replace("$B", str(BUNDLE)).split(), cwd=short_recording.parent)
    assert done.returncode == 2
    option = next(word for word in reversed(line.split()) if word in ("--window", *line.split()) and word[:2] == "--")
    assert ("--window" if "--window" in line else option) in done.stderr


def test_evaluate_prints_null_for_missing_scores(short_recording: Path) -> None:
    """A class that never occurs has no recall, which is null in JSON."""
    done = run_here("evaluate", BUNDLE, "p.csv", "--json", cwd=short_recording.parent)
    assert None in msgspec.json.decode(done.stdout)["classes"]["recall"]


@pytest.mark.parametrize("scores", [{"forecast": {"of": "another shape"}}, {"classes": 3}, {"verdict": 3}])
def test_inspect_survives_scores_of_another_version(tmp_path: Path, scores: dict[str, object]) -> None:
    """The rest of the bundle is still described."""
    made = make_bundle()
    written = write_bundle(tmp_path / "b", made.with_manifest(scores=scores).manifest, made.weights, {})
    lines = describe(written)
    assert "scores: stored in a form that this version does not read" in lines
    assert "all files match the manifest" in lines


def test_scores_may_be_absent() -> None:
    """A bundle without scores is described as such."""
    assert "scores: none stored" in describe(make_bundle())


def test_bench_accepts_any_column_name() -> None:
    """A comma in a name is quoted, and the stream column gets an unused name."""
    bundle = make_bundle(channels=3)
    names = ("a,b", "stream", 'a "c"')
    channels = [msgspec.structs.replace(c, column=n) for c, n in zip(bundle.manifest.channels, names, strict=True)]
    bundle = bundle.with_manifest(channels=channels)
    assert set(pipeline_rows(bundle, load_engine("numpy", bundle), 0.001)) >= {"pipeline, one sample"}
    assert free_name("stream", {"stream", "stream_"}) == "stream__"
    assert header_of(["t", "a,b"]) == b't,"a,b"\n'


EARLY = """
import os, sys
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Press())
sys.argv = ["stream-gru", {command!r}, "nowhere"]
from stream_gru.cli.main import main
main()
"""


@pytest.mark.parametrize("module", ["click", "numpy", "stream_gru.model.bundle"])
@pytest.mark.parametrize(
    ("command", "number", "code"),
    [
        ("inspect", signal.SIGINT, 130),
        ("run", signal.SIGINT, 130),
        ("run", signal.SIGTERM, 0),
        ("inspect", signal.SIGTERM, -15),
    ],
)
def test_a_signal_during_the_imports_ends_the_process_quietly(
    module: str, command: str, number: int, code: int
) -> None:
    """Ctrl-C and SIGTERM give the right exit code without a traceback, before anything is loaded."""
    done = subprocess.run(
        [sys.executable, "-c", EARLY.format(module=module, number=int(number), command=command)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == code
    assert done.stderr == ("stream-gru: interrupted\n" if code == 130 else "")


def test_the_entry_point_imports_almost_nothing() -> None:
    """Before `main` runs, no library is loaded; the public names are imported on demand."""
    code = "import sys, stream_gru.cli.main; print(len({'click', 'numpy', 'msgspec', 'typing'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "0"
    import stream_gru

    assert {name for name in stream_gru.__all__ if getattr(stream_gru, name) is None} == set()
    assert set(stream_gru.__all__) <= set(dir(stream_gru))
    assert stream_gru.load_bundle is load_bundle
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = stream_gru.nonsense  # type: ignore[attr-defined]
