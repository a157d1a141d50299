"""Runs inside the emulated machine, and on any other: `python -m tests.arm.guest claims|power`.

Each claim is printed as a line that begins with ``claim`` and continues in JSON; ``power`` also prints its progress, so
that the host can cut the power at a given point, and continues at the next start.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from unittest import mock

from stream_gru.model.engines.litert import LitertEngine
from tests.kill.life import Life
from tests.kill.messages import field_messages, plain_messages
from tests.kill.mqtt import KillOutcome, run_mqtt, uninterrupted_results
from tests.kill.points import ROWS
from tests.kill.replay import run_replay, undisturbed_replay
from tests.kill.results import differences, read_results
from tests.kill.runs import LOG, Settings, write_config, write_recording
from tests.support.cli import PUMP_HEADER, run_command, run_here
from tests.support.daemons import CHANNELS, pump_records
from tests.support.paths import BUNDLE, ROOT

SEED = 2026
BATCHES, BATCHES_OF_OTHER_ORDERS = (1, 7, 64, 1024), (7, 1024)
STREAMS, SAMPLES = 6, 150
KILLS = 6
MESSAGES_OF_POWER_CUTS = 2500
_CONTRACTS = ("tests/contracts/test_engines.py", "tests/model/test_litert_exactness.py")
_STDIN = f"""
run.bundle = "{BUNDLE}"
source = [{{ type = "stdin", format = "csv" }}]
sink = [{{ type = "file", path = "stdin.jsonl" }}]
metrics.enabled = false
"""


def report(text: str, check: Callable[[], str]) -> None:
    """Print a claim, whether it holds, what ``check`` found, and the time it took."""
    begin = time.monotonic()
    try:
        found, holds = check(), True
    except Exception:  # a failed check must not hide those after it
        found, holds = traceback.format_exc(), False
    line = {"text": text, "holds": holds, "found": found, "seconds": round(time.monotonic() - begin)}
    print("claim", json.dumps(line), flush=True)  # noqa: T201 - read by the host


def claims(folder: Path) -> None:
    """All claims but that about power cuts."""
    report("the machine is 64-bit ARM", machine)
    report("doctor finds that outputs do not depend on the batch, and parity with numpy", doctor)
    report("the engine contract tests pass", contract_tests)
    recordings = write_orders(folder)
    report("batch sizes, orders of the streams and standard input change no byte", lambda: batchings(recordings))
    report("the same comparison detects an engine that does not pad", lambda: detected(recordings))
    report("a broker's messages give the bytes of a replay", lambda: broker_walk(folder / "walk"))
    report(
        "a replay that is killed, with other batch sizes at each start, ends like an undisturbed one",
        lambda: killed(run_replay(folder / "replay", KILLS, SEED)),
    )
    report(
        "a daemon behind a broker that is killed, with other batch sizes at each start, ends like an undisturbed one",
        lambda: killed(run_mqtt(folder / "mqtt", KILLS, 100 * KILLS, SEED)),
    )


def machine() -> str:
    """Versions of what runs here."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("ai-edge-litert", "numpy"))
    assert platform.machine() == "aarch64", platform.machine()
    return f"Linux {platform.release()}, Python {platform.python_version()}, {packages}"


def doctor() -> str:
    """The line of the litert engine."""
    done = run_command("doctor", "--bundle", BUNDLE, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "engine litert"]
    assert line["state"] == "ok", line
    assert "outputs do not depend on the batch" in line["found"], line
    assert "differs from numpy by at most" in line["found"], line
    return str(line["found"])


def contract_tests() -> str:
    """The summary of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *_CONTRACTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout.splitlines()[-1]


def write_orders(folder: Path) -> list[Path]:
    """Recordings of the same streams: in turn, one stream after the other, and two random orders."""
    rows = {
        stream: [_csv_row(stream, record) for record in records]
        for stream, records in pump_records(STREAMS, SAMPLES).items()
    }
    in_turn = list(rows) * SAMPLES
    shuffled = [random.Random(seed).sample(in_turn, len(in_turn)) for seed in (1, 2)]
    paths = []
    for number, order in enumerate((in_turn, sorted(in_turn), *shuffled)):
        left = {stream: iter(lines) for stream, lines in rows.items()}
        paths.append(folder / f"order-{number}.csv")
        paths[-1].write_text(PUMP_HEADER + "".join(next(left[stream]) for stream in order))
    return paths


def _csv_row(stream: str, record: dict[str, float]) -> str:
    utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record["ts"]))
    return ",".join((utc, stream, *(str(record[name]) for name in CHANNELS))) + ",\n"


def batchings(recordings: Sequence[Path]) -> str:
    """The digest of the outputs, which all runs share."""
    expected = replay(recordings[0], 1024)
    different = [
        f"{recording.name} in batches of {rows}"
        for number, recording in enumerate(recordings)
        for rows in (BATCHES if number == 0 else BATCHES_OF_OTHER_ORDERS)
        if replay(recording, rows) != expected
    ]
    for recording in recordings[:2]:
        folder = recording.parent
        (folder / "run.toml").write_text(_STDIN)
        (folder / "stdin.jsonl").unlink(missing_ok=True)
        done = run_command("run", folder / "run.toml", stdin=recording.read_text(), cwd=folder)
        assert done.returncode == 0, done.stderr
        if by_stream((folder / "stdin.jsonl").read_bytes()) != expected:
            different.append(f"{recording.name} on standard input")
    assert not different, different
    runs = len(BATCHES) + len(recordings[1:]) * len(BATCHES_OF_OTHER_ORDERS) + 2
    digest = hashlib.sha256("".join(sorted(expected.values())).encode()).hexdigest()
    return f"{runs} runs of {STREAMS * SAMPLES} samples, digest {digest[:16]}"


def detected(recordings: Sequence[Path]) -> str:
    """How many streams differ between two batch sizes where one row and a scan are computed as they come."""

    def as_it_comes(engine: LitertEngine, _: object) -> None:
        engine.one_row, engine.exact_scan = 1, True

    with mock.patch.object(LitertEngine, "_make_exact", as_it_comes):
        first, second = replay(recordings[0], 1024), replay(recordings[1], 7)
    different = [stream for stream in first if first[stream] != second[stream]]
    assert different, "no difference: this processor needs no padding"
    return f"{len(different)} of {STREAMS} streams differ"


def replay(recording: Path, batch_rows: int) -> dict[str, str]:
    """The outputs of `stream-gru replay`, in this process."""
    out = recording.parent / "out.jsonl"
    done = run_here("replay", BUNDLE, recording, "--batch-rows", batch_rows, "--out", out)
    assert done.returncode == 0, done.stderr
    return by_stream(out.read_bytes())


def by_stream(rows: bytes) -> dict[str, str]:
    """Stream -> digest of its outputs in their order."""
    digests: dict[str, hashlib._Hash] = {}
    for row in rows.splitlines():
        digests.setdefault(json.loads(row)["stream"], hashlib.sha256()).update(row)
    return {stream: digest.hexdigest() for stream, digest in digests.items()}


def broker_walk(folder: Path) -> str:
    """Publish to a daemon; its files must be those of a replay."""
    sent = list(plain_messages(2000, 20, SEED))
    live, replayed = uninterrupted_results(made(folder / "live"), sent), undisturbed_replay(folder / "replayed", sent)
    assert live.files == replayed.files
    return f"{len(live.files[ROWS])} messages"


def killed(outcome: KillOutcome) -> str:
    """The number of kills, if nothing differs."""
    assert not outcome.problems, "\n".join(outcome.problems)
    return f"{outcome.tally.total} kills (SIGKILL), {outcome.messages} messages"


def power(folder: Path, batch_rows: int) -> None:
    """One start of a daemon with a state folder; at the end of its input, compare it with an undisturbed one."""
    sent = list(field_messages(MESSAGES_OF_POWER_CUTS, 50, SEED))
    write_recording(folder / "messages.jsonl", sent)
    life = Life(write_config(folder, Settings(batch_rows=batch_rows, commit_every=100)), folder / LOG)
    try:
        life.wait_for("r", 300)
        print("recovery", flush=True)  # noqa: T201
        life.wait_for("l", 300)
        rows = 0
        with (folder / ROWS).open("rb") as file:
            while (code := life.wait(0.1)) is None:
                rows += file.read().count(b"\n")
                print(f"progress {rows / len(sent):.3f}", flush=True)  # noqa: T201
        problems = life.error_lines()
    finally:
        life.close()

    def compared() -> str:
        assert code == 0, (code, (folder / LOG).read_text()[-2000:])
        found = problems + differences(undisturbed_replay(made(folder / "whole") / "run", sent), read_results(folder))
        assert not found, "\n".join(found)
        return f"{len(sent)} messages"

    report("a daemon whose power is cut, with other batch sizes at each start, ends like an undisturbed one", compared)


def made(folder: Path) -> Path:
    """The folder, which exists now."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main(stage: str, batch_rows: str = "1024") -> None:
    """Run a stage; the files of power cuts stay where the next start finds them."""
    if stage == "power":
        power(made(Path.home() / "power"), int(batch_rows))
    else:
        with tempfile.TemporaryDirectory() as folder:
            claims(Path(folder))
    print("end", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
