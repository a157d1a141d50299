"""Rejected messages: which of them are logged, and the dead-letter file that holds all of them."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import load_decoder
from stream_gru.core.protocols import Decoder
from stream_gru.core.types import DropReason, RawMessage, Rejected, SampleBatch
from stream_gru.runtime.control.executor import PauseFilter
from stream_gru.runtime.dead_letter import DeadLetterFile, RejectReporter
from stream_gru.runtime.ingest.ingest import RateLimit
from tests.support.batches import NOON_NS

GOOD = b'{"flow": 1}'


class Clock:
    """Seconds set by a test; ``reads`` counts the readings."""

    def __init__(self) -> None:
        self.now_s, self.reads = 0.0, 0

    def __call__(self) -> float:
        """The time."""
        self.reads += 1
        return self.now_s


def live_decoder(kind: str = "json") -> Decoder:
    """One channel, the time of arrival."""
    return load_decoder(kind, Fields(InputConfig(time=""), ("flow",)))


def live_message(payload: bytes, key: str = "p1", fault: DropReason | None = None) -> RawMessage:
    """A live message."""
    return RawMessage(payload, key, arrival_ns=NOON_NS, fault=fault, source="plant")


def logged_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The log lines so far; clears the log."""
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def report(reporter: RejectReporter, payloads: Sequence[bytes], kind: str = "json") -> SampleBatch:
    """One call of a decoder, whose rejected records are reported."""
    batch = live_decoder(kind).decode([live_message(payload) for payload in payloads])
    reporter.report("plant", batch.rejected)
    return batch


def test_a_good_batch_costs_nothing() -> None:
    """Not even a reading of the clock."""
    clock = Clock()
    batch = report(RejectReporter(clock=clock), [GOOD] * 100)
    assert (len(batch), batch.rejected, clock.reads) == (100, (), 0)


def test_the_bad_message_among_many_is_shown_with_its_beginning(caplog: pytest.LogCaptureFixture) -> None:
    """Its key, why it was rejected, and its first 120 bytes without control characters."""
    reporter = RejectReporter(clock=Clock())
    report(reporter, [GOOD] * 50 + [b"\x1b[2J" + b"x" * 200] + [GOOD] * 50)
    assert logged_lines(caplog) == [
        "source plant: rejected as parse: 'p1', 204 bytes: '\\x1b[2J" + "x" * 116 + "'",
    ]  # fmt: skip


def test_a_flood_is_three_lines_and_the_next_one_counts_the_suppressed(caplog: pytest.LogCaptureFixture) -> None:
    """For each reason; then one line per ten seconds."""
    clock = Clock()
    reporter = RejectReporter(clock=clock)
    for _ in range(4):
        report(reporter, [b"?"] * 25 + [b"[]"])
    lines = logged_lines(caplog)
    assert Counter(line.split(":")[1] for line in lines) == {" rejected as parse": 3, " rejected as type": 3}
    clock.now_s += 9.9
    report(reporter, [b"?"])
    assert logged_lines(caplog) == []
    clock.now_s += 0.2
    report(reporter, [b"?"])
    assert logged_lines(caplog) == [
        "source plant: rejected as parse: 'p1', 1 bytes: '?'; 98 more records since the last such line"
    ]


def test_the_suppressed_are_counted_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """Once."""
    reporter = RejectReporter(clock=Clock())
    report(reporter, [b"?"] * 2000)
    logged_lines(caplog)
    reporter.close()
    reporter.close()
    assert logged_lines(caplog) == ["source plant: rejected as parse: 1,997 more records"]


def test_of_many_lines_the_first_bad_one_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """A message of a file or a port may hold thousands; those of one reason are one line of the log."""
    reporter = RejectReporter(clock=Clock())
    report(reporter, [b"\n".join([GOOD] * 40 + [b'{"flow": tru'] + [GOOD] * 40 + [b"?"] * 2)], "jsonl")
    assert logged_lines(caplog) == [
        "source plant: rejected as parse: 'p1', 12 bytes: '{\"flow\": tru'; 3 such records in this message"
    ]


def test_a_message_over_many_lines_is_shown_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    """One JSON text is shown whole, not by its lines."""
    report(RejectReporter(clock=Clock()), [b'{\n"flow": true\n}'])
    assert logged_lines(caplog) == ["source plant: rejected as type: 'p1', 16 bytes: '{\\n\"flow\": true\\n}'"]


def test_rate_limited_and_paused_samples_are_not_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are good samples: their counters are enough."""
    path = tmp_path / "dead.jsonl"
    batch = RateLimit(per_s=1).apply(live_decoder().decode([live_message(GOOD)] * 100))
    gate = PauseFilter()
    gate.pause(None)
    batch = gate.apply(batch)
    assert batch.rejected_counts == {DropReason.RATE: 99, DropReason.PAUSED: 1}
    RejectReporter(DeadLetterFile(path, 1000), clock=Clock()).report("plant", batch.rejected)
    assert not logged_lines(caplog)
    assert not path.exists()


def test_faults_of_the_source_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    """A message that the source could not read has no payload, and may have no key."""
    batch = live_decoder().decode([live_message(b"", "", DropReason.OVERLONG_LINE)])
    RejectReporter(clock=Clock()).report("port", batch.rejected)
    assert logged_lines(caplog) == ["source port: rejected as overlong_line: no key, no payload"]


def test_only_the_bad_line_under_an_earlier_header_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Good lines under a header of an earlier message are not."""
    own = live_decoder("csv")
    own.decode([live_message(b"flow,level")])
    batch = own.decode([live_message(b"1,2"), live_message(b"x,2"), live_message(b"3,4")])
    assert len(batch) == 2
    RejectReporter(clock=Clock()).report("plant", batch.rejected)
    assert logged_lines(caplog) == ["source plant: rejected as parse: 'p1', 3 bytes: 'x,2'"]


def letters(path: Path) -> list[dict[str, object]]:
    """The entries of a dead-letter file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_dead_letters_hold_time_key_and_reason(tmp_path: Path) -> None:
    """The payload is text where it can be, base64 else, 4 KiB at most."""
    path = tmp_path / "dead.jsonl"
    reporter = RejectReporter(DeadLetterFile(path, 1 << 20), clock=Clock())
    report(reporter, [GOOD, "größe".encode(), b"\xff\x00", b"?" + "ö".encode() * 4000])
    reporter.close()
    first, second, third = letters(path)
    assert first == {
        "time": "2024-05-01T12:00:00Z", "source": "plant", "key": "p1", "reason": "parse", "records": 1, "bytes": 7,
        "payload": "größe",
    }  # fmt: skip
    assert (second["reason"], second["payload"]) == ("encoding", {"base64": "/wA="})
    assert (third["bytes"], third["payload"]) == (8001, "?" + "ö" * 2047)
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_rejected_message_of_a_flood_is_a_dead_letter(tmp_path: Path) -> None:
    """However fast they come, and whatever the log suppresses."""
    path = tmp_path / "dead.jsonl"
    reporter = RejectReporter(DeadLetterFile(path, 1 << 30), clock=Clock())
    for first in range(0, 20_000, 1000):
        report(reporter, [b"{%d" % number for number in range(first, first + 1000)])
    reporter.close()
    assert [letter["payload"] for letter in letters(path)] == [f"{{{number}" for number in range(20_000)]


def test_many_bad_lines_of_one_message_are_one_dead_letter(tmp_path: Path) -> None:
    """With their number and the first of them: the memory they take is bounded."""
    path = tmp_path / "dead.jsonl"
    reporter = RejectReporter(DeadLetterFile(path, 1 << 20), clock=Clock())
    batch = report(reporter, [b"flow\n1\nx7\n" + b",\n" * 30_000], "csv")
    reporter.close()
    assert (len(batch), len(batch.rejected), batch.received) == (1, 1, 30_002)
    found = {letter["reason"]: (letter["records"], letter["bytes"], letter["payload"]) for letter in letters(path)}
    assert found == {"parse": (30_001, 1, ",")}


def keep(file: DeadLetterFile, payload: bytes) -> None:
    """Write one entry."""
    file.write("plant", [Rejected(DropReason.PARSE, 1, live_message(payload))])


def test_dead_letters_are_bounded(tmp_path: Path) -> None:
    """At its limit the file replaces the one before, and a new one begins."""
    path = tmp_path / "dead.jsonl"
    file = DeadLetterFile(path, 1000)
    for number in range(100):
        keep(file, b"%d" % number)
        assert path.stat().st_size <= 1000
    file.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dead.jsonl", "dead.jsonl.1"]
    both = letters(tmp_path / "dead.jsonl.1") + letters(path)
    assert [letter["payload"] for letter in both] == [str(number) for number in range(100 - len(both), 100)]
    assert len(both) > 5


@pytest.mark.parametrize("begun", [0, 1, 5])
def test_a_batch_of_dead_letters_keeps_the_bound_as_single_ones_do(begun: int, tmp_path: Path) -> None:
    """Entries of one batch fill the same files, wherever the first one stands."""
    files = []
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "dead.jsonl"
        entries = [Rejected(DropReason.PARSE, 1, live_message(b"%d" % number)) for number in range(100)]
        file = DeadLetterFile(path, 1000)
        for entry in entries[:begun]:
            file.write("plant", [entry])
        file.close()
        file = DeadLetterFile(path, 1000)
        for rest in [entries[begun:]] if name == "many" else [[entry] for entry in entries[begun:]]:
            file.write("plant", rest)
        file.close()
        files.append((path.read_bytes(), path.with_name("dead.jsonl.1").read_bytes()))
    assert files[0] == files[1]


def test_dead_letters_continue_after_half_a_line(tmp_path: Path) -> None:
    """A file of a killed process may end within a line; the next entry has a line of its own."""
    path = tmp_path / "dead.jsonl"
    for _ in range(2):
        file = DeadLetterFile(path, 10_000)
        keep(file, b"a")
        file.close()
    assert len(letters(path)) == 2
    with path.open("ab") as torn:
        torn.write(b'{"time": "20')
    file = DeadLetterFile(path, 10_000)
    keep(file, b"b")
    file.close()
    assert json.loads(path.read_text().splitlines()[-1])["payload"] == "b"
    assert len(path.read_text().splitlines()) == 4


def test_an_error_of_the_disk_is_logged_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Until a write succeeds."""
    file = DeadLetterFile(tmp_path / "gone" / "dead.jsonl", 1000)
    for _ in range(5):
        keep(file, b"a")
    (line,) = logged_lines(caplog)
    assert line.startswith("dead letters: cannot write ")
    assert line.endswith("dead.jsonl: No such file or directory; rejected messages are lost until a write succeeds")
    (tmp_path / "gone").mkdir()
    keep(file, b"a")
    assert len(letters(tmp_path / "gone" / "dead.jsonl")) == 1
    file.close()
    file.close()


def test_a_full_disk_tears_no_later_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line is ended before the next one."""
    path = tmp_path / "dead.jsonl"
    file = DeadLetterFile(path, 10_000)
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[:10]))
        keep(file, b"a")
    keep(file, b"b")
    file.close()
    assert [len(line) > 10 for line in path.read_text().splitlines()] == [False, True]


def test_a_rejected_message_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It is seen at the default level."""
    report(RejectReporter(clock=Clock()), [b"?"])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_rows_without_a_message_are_no_dead_letters(tmp_path: Path) -> None:
    """Rows rejected after decoding, for their order or their clock, have no message to write."""
    path = tmp_path / "dead.jsonl"
    batch = live_decoder().decode([live_message(GOOD), live_message(b"?")])
    late = batch.rejecting(np.ones(1, np.bool_), DropReason.LATE)
    assert late.rejected_counts == {DropReason.PARSE: 1, DropReason.LATE: 1}
    assert late.received == 2
    reporter = RejectReporter(DeadLetterFile(path, 1000), clock=Clock())
    reporter.report("plant", late.rejected)
    reporter.close()
    assert [letter["reason"] for letter in letters(path)] == ["parse"]
