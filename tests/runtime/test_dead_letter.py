"""Rejected messages: which of them are logged, and the dead-letter file that holds all of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.rejects import explanation
from stream_gru.connectors.registry import load_decoder
from stream_gru.connectors.sources.files import FileSource
from stream_gru.core.errors import EndOfInput
from stream_gru.core.protocols import Decoder
from stream_gru.core.types import DropReason, PredictionBatch, RawMessage, Rejected, SampleBatch
from stream_gru.model.bundle import load_bundle
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.control.executor import PauseFilter
from stream_gru.runtime.dead_letter import DeadLetterFile, RejectReporter, SkipReason
from stream_gru.runtime.ingest.ingest import RateLimit
from tests.support.batches import NOON_NS, batch
from tests.support.paths import BUNDLE

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
    return RawMessage(payload, key, arrival_ns=NOON_NS, fault=fault, source="plant", topic=f"sensors/{key}/data")


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
        "source plant: rejected as parse: 'p1', row 41, 12 bytes: '{\"flow\": tru'; 3 such records in this message"
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
    """A message that the source could not read may have no payload and no key; then its topic or port is shown."""
    batch = live_decoder().decode([live_message(b"", "", DropReason.OVERLONG_LINE)])
    RejectReporter(clock=Clock()).report("port", batch.rejected)
    assert logged_lines(caplog) == ["source port: rejected as overlong_line: 'sensors//data', no payload"]


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
        "time": "2024-05-01T12:00:00Z", "source": "plant", "topic": "sensors/p1/data", "key": "p1", "reason": "parse",
        "records": 1, "row": 1, "offset": 0, "bytes": 7, "payload": "größe",
    }  # fmt: skip
    assert (second["reason"], second["payload"]) == ("encoding", {"base64": "/wA="})
    assert (third["bytes"], third["payload"]) == (8001, "?" + "ö" * 2047)
    assert path.stat().st_mode & 0o777 == 0o600


def test_every_rejected_message_of_a_flood_is_a_dead_letter(tmp_path: Path) -> None:
    """However fast they come, and whatever the log suppresses."""
    path = tmp_path / "dead.jsonl"
    clock = Clock()
    reporter = RejectReporter(DeadLetterFile(path, 1 << 30, clock=clock), clock=clock)
    for first in range(0, 20_000, 1000):
        report(reporter, [b"{%d" % number for number in range(first, first + 1000)])
        clock.now_s += 0.1
    reporter.close()
    assert reporter.skipped.get(SkipReason.RATE, 0) == 0
    assert [letter["payload"] for letter in letters(path)] == [f"{{{number}" for number in range(20_000)]


def test_many_bad_lines_of_one_message_are_one_dead_letter(tmp_path: Path) -> None:
    """With their number and the first of them: the memory they take is bounded."""
    path = tmp_path / "dead.jsonl"
    reporter = RejectReporter(DeadLetterFile(path, 1 << 20), clock=Clock())
    batch = report(reporter, [b"flow\n1\nx7\n" + b",\n" * 30_000], "csv")
    reporter.close()
    assert (len(batch), len(batch.rejected), batch.received) == (1, 1, 30_002)
    keys = ("reason", "records", "row", "offset", "bytes", "payload")
    assert [[letter[key] for key in keys] for letter in letters(path)] == [["parse", 30_001, 4, 10, 1, ","]]


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


def test_messages_beyond_the_rate_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What may come in a second may come at once; written and skipped together are all that were rejected."""
    path, clock = tmp_path / "dead.jsonl", Clock()
    file = DeadLetterFile(path, 1 << 20, 10, clock)
    entries = [Rejected(DropReason.PARSE, 1, live_message(b"%d" % number)) for number in range(40)]
    file.write("plant", entries[:15])
    clock.now_s += 0.5
    file.write("plant", entries[15:30])
    clock.now_s += 60
    file.write("plant", entries[30:])
    caplog.set_level(logging.INFO)
    file.close()
    file.close()
    kept = [*range(10), *range(15, 20), *range(30, 40)]
    assert [letter["payload"] for letter in letters(path)] == [str(number) for number in kept]
    assert (file.written, file.skipped[SkipReason.RATE], file.skipped.total()) == (25, 15, 15)
    assert logged_lines(caplog) == [f"dead letters: 25 written to {path}, 15 not kept (15 rate)"]


def test_messages_that_fall_out_of_the_file_are_counted(tmp_path: Path) -> None:
    """Those of an earlier process too; what is in the two files and what was counted are all that were rejected."""
    path = tmp_path / "dead.jsonl"
    skipped = 0
    for _ in range(2):
        file = DeadLetterFile(path, 1000)
        for number in range(50):
            keep(file, b"%d" % number)
        file.close()
        skipped += file.skipped[SkipReason.SIZE]
    assert len(letters(path)) + len(letters(tmp_path / "dead.jsonl.1")) + skipped == 100
    assert skipped > 50


def test_messages_that_the_disk_does_not_take_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a failed write, and what is incomplete after a short one."""
    file = DeadLetterFile(tmp_path / "gone" / "dead.jsonl", 1000)
    keep(file, b"a")
    assert file.skipped[SkipReason.ERROR] == 1
    (tmp_path / "gone").mkdir()
    keep(file, b"a")
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda handle, data: write(handle, data[:-1]))
        keep(file, b"b")
    keep(file, b"c")
    assert (file.written, file.skipped[SkipReason.ERROR]) == (2, 2)
    file.close()


def places(kind: str, payload: bytes, header: bytes = b"") -> list[tuple[DropReason, int, int | None, bytes]]:
    """Reason, row, offset and beginning of what a decoder rejects."""
    batch = live_decoder(kind).decode([dataclasses.replace(live_message(payload), header=header)])
    return [(entry.reason, entry.row, entry.offset, entry.line) for entry in batch.rejected]


def test_the_place_of_a_bad_record_is_known_in_each_format() -> None:
    """Its line or its number in a list, its byte, and what stands there."""
    good, bad = b'{"flow": 1}', b'{"flow": tru}'
    missing = b'{"flw": 1}'
    parse, absent, encoding = DropReason.PARSE, DropReason.MISSING_FIELD, DropReason.ENCODING
    assert places("jsonl", b"\n".join([good, b"", bad, missing, bad])) == [
        (parse, 3, 13, bad),
        (absent, 4, 27, missing),
    ]
    assert places("jsonl", b"\n".join([good, b"\xff", good, bad])) == [(encoding, 2, 12, b"\xff"), (parse, 4, 26, bad)]
    assert places("json_array", b"[%b, %b,\n %b]" % (good, good, missing)) == [(absent, 3, 28, missing)]
    assert places("json_array", b"[%b, 7]" % good) == [(DropReason.TYPE, 2, 14, b"7")]
    assert places("json", bad) == [(parse, 1, 0, b"")]
    assert places("csv", b"flow,level\n1,2\n\n1\nx,2\n") == [(absent, 4, 16, b"1"), (parse, 5, 18, b"x,2")]
    assert places("csv", b"1,2\n\nx,2\n3", header=b"flow,level") == [(absent, 4, 9, b"3"), (parse, 3, 5, b"x,2")]
    assert places("plotter", b"flow:1\nflow\noops\nflow:x") == [(absent, 3, 12, b"oops"), (parse, 4, 17, b"flow:x")]
    assert places("line_protocol", b"m flow=1 1\n# note\nm flow 1") == [(parse, 3, 18, b"m flow 1")]
    assert places("json_vector", b'{"v": [1]}\n{"v": []}\n{"v": [1]}') == [(absent, 2, 11, b'{"v": []}')]
    assert places("json_vector", b'{"v": [[1], [2], []]}') == [(absent, 3, None, b"")]
    assert places("senml", b'[{"n": "flow", "v": 1}, {"n": "flow", "t": 1, "v": "x"}]') == [
        (DropReason.TYPE, 2, 24, b'{"n": "flow", "t": 1, "v": "x"}')
    ]


def test_garbage_of_the_largest_size_takes_little_time() -> None:
    """A payload of bad lines costs a few passes over its bytes, however many of them there are."""
    payload = b"\n".join([b'{"flow": 1}'] * 2000 + [b"{", b"\xff", b"[]", b'{"flw": 1}', b'{"flow": "x"}'] * 2500)
    assert len(payload) > 65_536
    started_s = time.process_time()
    found = places("jsonl", payload)
    assert time.process_time() - started_s < 1.0
    assert len(found) == 4
    assert all(payload.startswith(line, offset) for _, _, offset, line in found)


def test_the_offset_in_a_recorded_file_counts_from_its_beginning(tmp_path: Path) -> None:
    """A file is read in blocks: a row of a block says nothing, the byte is where an editor finds it."""
    text = b"time,flow\n" + b"".join(b"2026-01-01T00:00:%02dZ,%d\n" % (n % 60, n) for n in range(100))
    text += b"oops,1\n"
    path = tmp_path / "pump.csv"
    path.write_bytes(text)
    source = FileSource([path], "csv", 16)
    source.open(None)
    reporter = RejectReporter(DeadLetterFile(tmp_path / "dead.jsonl", 1 << 20), clock=Clock())
    decoder = load_decoder("csv", Fields(InputConfig(time="time"), ("flow",)))
    with suppress(EndOfInput):
        while True:
            reporter.report("replay", decoder.decode(source.poll(100, 0.0)).rejected)
    reporter.close()
    (letter,) = letters(tmp_path / "dead.jsonl")
    assert (letter["topic"], letter["row"], letter["time"]) == (str(path), None, None)
    assert letter["offset"] == text.index(b"oops")


# ---- samples that conditioning drops


def dropped_by_pumps(times_s: Sequence[float], flows: Sequence[float]) -> tuple[Pipeline, PredictionBatch]:
    """Outputs of the shipped model for one pump, with good values in the other channels."""
    pipeline = Pipeline(load_bundle(BUNDLE), "numpy")
    rows = [[flow, 300.0, 5.0, 1.5] for flow in flows]
    good = pipeline.process(batch(["pump-1"], [0], [[100.0, 300.0, 5.0, 1.5]]))
    assert not good.drops
    return pipeline, pipeline.process(batch(["pump-1"] * len(rows), list(times_s), rows))


@pytest.mark.parametrize(
    ("times_s", "flows", "reason", "detail"),
    [
        ([5, 3, 2], [100.0] * 3, "late", "2 s older than the newest sample of the stream"),
        ([0], [100.0], "duplicate", "a sample of this time was processed before"),
        (range(1, 9), [9999.0] * 8, "out_of_range", "flow = 9999, expected -5 to 1000"),
        (range(1, 9), [math.nan] * 8, "non_finite", "flow is missing, for longer than its last value is held"),
    ],
)
def test_a_dropped_sample_is_logged_and_kept_with_its_stream_and_what_was_wrong(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    times_s: Sequence[float],
    flows: Sequence[float],
    reason: str,
    detail: str,
) -> None:
    """Channel, value and bound; one line for all samples of a stream and a reason in a batch."""
    pipeline, out = dropped_by_pumps(times_s, flows)
    reporter = RejectReporter(DeadLetterFile(tmp_path / "dead.jsonl", 10_000))
    reporter.report_drops("plant", out.drops, pipeline.manifest.channels)
    reporter.close()
    (line,) = [json.loads(text) for text in (tmp_path / "dead.jsonl").read_text().splitlines()]
    assert (line["source"], line["stream"], line["reason"]) == ("plant", "pump-1", reason)
    assert line["detail"].startswith(detail)
    assert line["records"] == sum(out.dropped.values())
    first = logged_lines(caplog)[0]
    assert f"source plant: stream pump-1: sample at {line['sample_time']} dropped as {reason}: {detail}" in first


def test_streams_over_the_limit_are_named() -> None:
    """With the setting that limits them."""
    pipeline = Pipeline(load_bundle(BUNDLE), "numpy", max_streams=1)
    out = pipeline.process(batch(["a", "b"], [0, 0], [[100.0, 300.0, 5.0, 1.5]] * 2))
    (drop,) = out.drops
    assert (drop.stream, drop.reason, drop.records) == ("b", DropReason.STREAM_LIMIT, 1)


# ---- what to change


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"ts": 5, "seq": 1, "flow": 2}', 'no "timestamp" (has ts, seq, flow)'),
        (b'{"timestamp": "1796063437000", "flow": 2}', 'read as s is the year 58884: time_unit = "ms"?'),
        (b'{"timestamp": 1796063437000000, "flow": 2}', 'time_unit = "us"?'),
        (b'{"timestamp": 5, "flow": 2}', "timestamp = 5 read as s is the year 1970"),
        (b'{"timestamp": 1796063437, "Flow": 2}', "none of the channels flow (has timestamp, Flow)"),
        (b"[1", ""),
        (b'"text"', ""),
    ],
)
def test_the_log_names_what_is_absent_and_the_likely_unit(payload: bytes, expected: str) -> None:
    """Of a JSON object; of what cannot be read nothing is said."""
    fields = Fields(InputConfig(time="timestamp", time_unit="s", stream=""), ("flow",))
    message = dataclasses.replace(live_message(payload), arrival_ns=1_796_063_437 * 10**9)
    (entry, *_) = load_decoder("json", fields).decode([message]).rejected or (Rejected(DropReason.PARSE, 1, message),)
    found = explanation(entry, fields.input, fields.columns)
    assert expected in found if expected else found == ""


def test_the_log_names_the_columns_of_a_csv_file() -> None:
    """Its header says what each row has."""
    message = RawMessage(b"1796063437000,2\n", "p1", b"time,flow\n")
    entry = Rejected(DropReason.TIMESTAMP, 1, message)
    found = explanation(entry, InputConfig(time="time", time_unit="s"), ("flow",))
    assert found == 'time = 1796063437000 read as s is the year 58884: time_unit = "ms"?'
    entry = Rejected(DropReason.MISSING_FIELD, 1, message)
    assert explanation(entry, InputConfig(time="when"), ("flow",)) == 'no "when" (has time, flow)'


def test_an_explanation_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Before the beginning of the record."""
    entry = Rejected(DropReason.MISSING_FIELD, 1, live_message(GOOD))
    RejectReporter().report("plant", [entry], lambda _: 'no "ts" (has flow)')
    assert "source plant: rejected as missing_field: no \"ts\" (has flow); 'p1', 11 bytes" in logged_lines(caplog)[0]
