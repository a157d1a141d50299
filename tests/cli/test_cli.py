"""The command line in its own process, as a user runs it: outputs, messages and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests.support.cli import PUMP_HEADER, command, pump_rows, run_command, run_here
from tests.support.paths import BUNDLE, HELD_OUT, ROOT
from tests.support.waiting import wait_for


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A short recording."""
    path = tmp_path / "p.csv"
    path.write_text(PUMP_HEADER + pump_rows(50))
    return path


def test_replay_writes_one_row_per_sample(recording: Path) -> None:
    """Standard output holds JSON lines and nothing else; the summary goes to standard error."""
    done = run_command("replay", BUNDLE, recording)
    assert done.returncode == 0
    outputs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outputs) == 50
    assert outputs[0]["stream"] == "p"
    assert outputs[0]["reset"] == "first_sample"
    assert list(outputs[0]) == [
        "id", "stream", "time", "forecast", "interval", "level", "class", "probabilities", "status", "reset", "steps",
        "model_id",
    ]  # fmt: skip
    assert len(outputs[0]["forecast"]["flow"]) == 10
    assert "samples     50" in done.stderr


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.jsonl.gz", "out.csv.gz"])
def test_replay_derives_the_format_from_the_file_name(recording: Path, tmp_path: Path, name: str) -> None:
    """The name of a file sets its format and compression; a second run replaces the file."""
    first = tmp_path / name
    assert run_here("replay", BUNDLE, recording, "--out", first, "-q").returncode == 0
    data = first.read_bytes()
    assert run_here("replay", BUNDLE, recording, "--out", first, "-q").returncode == 0
    assert first.read_bytes() == data
    assert data


def test_the_batch_size_does_not_change_the_output(tmp_path: Path) -> None:
    """The output file is the same, byte for byte, for every batch size."""
    outputs = []
    for rows_at_once in (17, 500, 100_000):
        path = tmp_path / f"{rows_at_once}.jsonl"
        assert run_here("replay", BUNDLE, HELD_OUT, "--out", path, "--batch-rows", rows_at_once, "-q").returncode == 0
        outputs.append(path.read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


def test_live_from_standard_input_equals_replay(recording: Path, tmp_path: Path) -> None:
    """The daemon on a pipe and the replay of a file write the same bytes."""
    config = tmp_path / "run.toml"
    config.write_text(
        f'[run]\nbundle = "{BUNDLE}"\n[[source]]\ntype = "stdin"\nformat = "csv"\n'
        '[[sink]]\ntype = "stdout"\n[metrics]\nlisten = "127.0.0.1:0"\n'
    )
    live = run_command("run", config, stdin=recording.read_text())
    assert live.returncode == 0
    assert live.stdout == run_command("replay", BUNDLE, recording).stdout


def test_bad_lines_are_dropped_and_counted(tmp_path: Path) -> None:
    """Each bad line is dropped with its reason, the rows beside it are processed, and the exit code is 0."""
    config = tmp_path / "run.toml"
    config.write_text(
        f'[run]\nbundle = "{BUNDLE}"\n[[source]]\ntype = "stdin"\nformat = "csv"\n'
        '[[sink]]\ntype = "file"\npath = "out.jsonl"\n[metrics]\nenabled = false\n'
    )
    text = PUMP_HEADER + pump_rows(3) + "rubbish\n,,,,,,,,,,\nnot a time,p,1,2,3,4,x\n" + pump_rows(2, first=3)
    done = run_command("run", config, "--json", stdin=text)
    assert done.returncode == 0
    summary = json.loads(done.stderr.splitlines()[-1])
    assert (summary["samples"], summary["applied"]) == (8, 5)
    assert summary["dropped"] == {"missing_field": 1, "parse": 1, "timestamp": 1}
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5


def test_sigterm_ends_the_daemon_with_exit_code_0(tmp_path: Path) -> None:
    """The daemon processes what it has read, closes its files and ends; /metrics works until then."""
    config = tmp_path / "run.toml"
    config.write_text(
        f'[run]\nbundle = "{BUNDLE}"\n[[source]]\ntype = "stdin"\nformat = "csv"\n'
        '[[sink]]\ntype = "file"\npath = "out.jsonl"\n[metrics]\nlisten = "127.0.0.1:0"\n'
    )
    daemon = subprocess.Popen(
        command("run", config), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert daemon.stdin is not None
    assert daemon.stderr is not None
    with daemon:
        address = next(line for line in daemon.stderr if line.startswith("metrics at")).split()[-1]
        daemon.stdin.write(PUMP_HEADER + pump_rows(5))
        daemon.stdin.flush()
        wanted = 'stream_gru_samples_applied_total{source="stdin"} 5.0'
        wait_for(lambda: wanted in urllib.request.urlopen(address, timeout=5).read().decode(), what=wanted)  # noqa: S310
        for probe in ("healthy", "ready"):
            with urllib.request.urlopen(address.replace("metrics", f"-/{probe}"), timeout=5) as answer:  # noqa: S310
                assert answer.status == 200
        daemon.send_signal(signal.SIGTERM)
        errors = daemon.stderr.read()
        assert daemon.wait(10) == 0, errors
    assert "applied     5" in errors
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5


def test_a_closed_pipe_ends_the_replay_quietly() -> None:
    """``replay ... | head`` neither hangs nor prints a traceback."""
    done = subprocess.run(
        ["sh", "-c", f"{' '.join(command('replay', BUNDLE, HELD_OUT))} | head -n 2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["replay", "nowhere.bundle", "x.csv"], 2, "nowhere.bundle: expected a bundle folder, found nothing"),
        (["replay", BUNDLE, "nowhere.csv"], 1, "nowhere.csv: no such file"),
        (["replay", BUNDLE, ROOT / "pyproject.toml"], 2, "expected a name ending in .csv"),
        (
            ["replay", BUNDLE, HELD_OUT, "--engine", "fast"],
            2,
            "expected one of auto, litert, numpy",
        ),
        (["replay", BUNDLE, HELD_OUT, "--fast", "--speed", "2"], 2, "exclude each other"),
        (["replay", BUNDLE, HELD_OUT, "--out", "/nowhere/x.jsonl"], 1, "/nowhere/x.jsonl: cannot be written"),
        (["replay", BUNDLE, HELD_OUT, "--out", "x.txt"], 2, "x.txt: expected a name that ends in .jsonl"),
        (["run", "nowhere.toml"], 2, "nowhere.toml"),
        (["check", "nowhere.toml"], 2, "nowhere.toml"),
        (["train", "nowhere.toml", "--out", "x"], 2, "nowhere.toml"),
        (["inspect", ROOT / "tests"], 2, "manifest.json: cannot be read"),
        (["nonsense"], 2, "No such command"),
        (["replay"], 2, "Missing argument"),
    ],
)
def test_errors_have_a_message_and_an_exit_code(arguments: list[object], code: int, words: str) -> None:
    """2 for usage and configuration, 1 for failures; the message says what and where, without a traceback."""
    done = run_here(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr


def test_a_recording_without_a_channel_is_rejected(tmp_path: Path) -> None:
    """The message names the missing column and the columns of the file."""
    path = tmp_path / "other.csv"
    path.write_text("time,pump,a,b\n2026-03-01T00:00:00Z,p,1,2\n")
    done = run_here("replay", BUNDLE, path)
    assert done.returncode == 1
    assert "expected a column 'flow' in the header, got time, pump, a, b" in done.stderr


def test_a_truncated_gzip_file_is_rejected(tmp_path: Path) -> None:
    """It is an error, not a short recording."""
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(HELD_OUT.read_bytes()[:20_000])
    done = run_here("replay", BUNDLE, path, "-q")
    assert done.returncode == 1
    assert "cannot be read" in done.stderr


def test_inspect_describes_a_bundle() -> None:
    """As text and as JSON; the parameter counts by formula and by counting agree."""
    text = run_here("inspect", BUNDLE).stdout
    for words in ("regime      stateful", "period      1 s", "by formula", "parity with Keras", "SHA-256"):
        assert words in text
    parts = json.loads(run_here("inspect", BUNDLE, "--json").stdout)["parameters"]
    assert [part["by_formula"] for part in parts] == [part["by_count"] for part in parts]


def test_evaluate_reproduces_the_stored_scores() -> None:
    """Streaming the held-out recording again gives the scores of the manifest."""
    stored = json.loads(run_here("inspect", BUNDLE, "--json").stdout)["scores"]
    again = json.loads(run_here("evaluate", BUNDLE, HELD_OUT, "--json").stdout)
    assert again["classes"]["accuracy"] == pytest.approx(stored["classes"]["accuracy"], abs=1e-3)
    assert again["forecast"]["model"]["mae_scaled"] == pytest.approx(
        stored["forecast"]["model"]["mae_scaled"], rel=1e-3
    )


def test_printed_sample_configurations_are_valid(tmp_path: Path) -> None:
    """``check`` accepts the output of ``config``."""
    for purpose in ("train", "run"):
        path = tmp_path / f"{purpose}.toml"
        path.write_text(run_here("config", purpose).stdout)
        done = run_here("check", path)
        assert done.returncode == 0, done.stderr


def test_check_reports_every_problem_with_its_line(tmp_path: Path) -> None:
    """All problems at once, with exit code 2."""
    path = tmp_path / "bad.toml"
    source = '[[source]]\ntype = "replay"\nfiles = ["a.csv"]\nspeed = -1\n'
    path.write_text(f'[run]\nbundle = 3\nengin = "litert"\n\n{source}')
    done = run_here("check", path)
    assert done.returncode == 2
    assert f"{path}:2: run.bundle: expected" in done.stderr
    assert f"{path}:3: run.engin: expected" in done.stderr
    assert f"{path}:8: source[1].speed: expected" in done.stderr


def test_the_demo_ends_with_its_scores() -> None:
    """The demo on the shipped data prints its scores."""
    done = run_command("demo", "--fast", cwd=ROOT)
    assert done.returncode == 0
    for words in ("metrics at http://127.0.0.1:", "accuracy", "skill against persistence", "latency", "memory"):
        assert words in done.stderr


def test_options_can_be_set_by_the_environment(recording: Path) -> None:
    """Every option has an environment variable."""
    done = subprocess.run(
        command("replay", BUNDLE, recording),
        env={**os.environ, "STREAM_GRU_REPLAY_QUIET": "1", "STREAM_GRU_REPLAY_FORMAT": "csv"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("stream,time,flow+1,flow+1_lower")
    assert done.stderr == ""
