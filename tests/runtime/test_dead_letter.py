"""Poison: what is shown and kept of messages that were refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.registry import load_decoder
from stream_gru.core.protocols import Decoder, Stateful
from stream_gru.core.types import DropReason, RawMessage, SampleBatch
from stream_gru.runtime.dead_letter.reporter import DeadLetters, Poison, Search
from stream_gru.runtime.ingest.rate_limit import RateLimit
from tests.support.batches import NOON_NS

GOOD = b'{"flow": 1}'


class Clock:
    """Seconds that go on when told, or with each look at them."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.now_s, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        """What time it is."""
        self.now_s += self.step_s
        return self.now_s


class Counting:
    """A decoder that counts what it is given."""

    def __init__(self, inside: Decoder) -> None:
        self.inside, self.messages = inside, 0

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        self.messages += len(raw)
        return self.inside.decode(raw)


def decoder(kind: str = "json") -> Decoder:
    """One channel, the time of arrival."""
    return load_decoder(kind, Fields(InputConfig(time=""), ("flow",)))


def message(payload: bytes, key: str = "p1", fault: DropReason | None = None) -> RawMessage:
    """A live one."""
    return RawMessage(payload, key, arrival_ns=NOON_NS, fault=fault, source="plant")


def shown(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Lines of the log so far, which is then empty."""
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def observe(poison: Poison, payloads: Sequence[bytes], kind: str = "json") -> None:
    """One call of a decoder, and what poison makes of it."""
    messages = [message(payload) for payload in payloads]
    poison.observe("plant", messages, decoder(kind).decode(messages))


def test_a_good_batch_is_decoded_once() -> None:
    """Nothing is looked at again, and no clock is read."""
    twin, clock = Counting(decoder()), Clock(1.0)
    poison = Poison({"plant": Search(twin)}, clock=clock)
    begun = clock.now_s
    observe(poison, [GOOD] * 100)
    assert (twin.messages, clock.now_s) == (0, begun)


def test_the_culprit_among_many_is_shown_with_its_beginning(caplog: pytest.LogCaptureFixture) -> None:
    """Who sent it, why it was refused, and its first 120 bytes without anything a terminal obeys."""
    poison = Poison({"plant": Search(decoder())}, clock=Clock())
    observe(poison, [GOOD] * 50 + [b"\x1b[2J" + b"x" * 200] + [GOOD] * 50)
    assert shown(caplog) == [
        "source plant: refused as parse: 'p1', 204 bytes: '\\x1b[2J" + "x" * 116 + "'",
    ]  # fmt: skip


def test_a_flood_is_three_lines_and_the_next_one_says_what_was_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """For each reason; then one line in ten seconds."""
    clock = Clock()
    poison = Poison({"plant": Search(decoder())}, clock=clock)
    for _ in range(4):
        observe(poison, [b"?"] * 25 + [b"[]"])
    lines = shown(caplog)
    assert [line.split(":")[1] for line in lines] == [" refused as parse"] * 3 + [" refused as type"] * 3
    clock.now_s += 9.9
    observe(poison, [b"?"])
    assert shown(caplog) == []
    clock.now_s += 0.2
    observe(poison, [b"?"])
    assert shown(caplog) == ["source plant: refused as parse: 'p1', 1 bytes: '?'; 98 more since the last such line"]


def test_what_was_left_out_at_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Once."""
    poison = Poison({"plant": Search(decoder())}, clock=Clock())
    observe(poison, [b"?"] * 2000)
    shown(caplog)
    poison.close()
    poison.close()
    assert shown(caplog) == ["source plant: 1,997 more were refused as parse"]


def test_of_many_lines_the_bad_one_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """A message of a file or a port may hold thousands."""
    poison = Poison({"plant": Search(decoder("jsonl"))}, clock=Clock())
    observe(poison, [b"\n".join([GOOD] * 40 + [b'{"flow": tru'] + [GOOD] * 40)], "jsonl")
    assert shown(caplog) == ["source plant: refused as parse: 'p1', 12 bytes: '{\"flow\": tru'"]


def test_a_message_over_many_lines_is_shown_as_a_whole(caplog: pytest.LogCaptureFixture) -> None:
    """One text of JSON is not its lines."""
    poison = Poison({"plant": Search(decoder())}, clock=Clock())
    observe(poison, [b'{\n"flow": true\n}'])
    assert shown(caplog) == ["source plant: refused as type: 'p1', 16 bytes: '{\\n\"flow\": true\\n}'"]


def test_good_samples_that_came_too_fast_are_not_searched_for() -> None:
    """They are no poison; their counter says enough."""
    twin = Counting(decoder())
    messages = [message(GOOD)] * 100
    batch = RateLimit(per_s=1).apply(decoder().decode(messages))
    assert batch.rejected
    Poison({"plant": Search(twin)}, clock=Clock()).observe("plant", messages, batch)
    assert twin.messages == 0


def test_faults_of_the_source_are_shown_without_a_search(caplog: pytest.LogCaptureFixture) -> None:
    """Their payload is gone; a source whose decoder nobody told is shown so too."""
    messages = [message(b"", "", DropReason.OVERLONG_LINE)]
    Poison({}, clock=Clock()).observe("port", messages, decoder().decode(messages))
    assert shown(caplog) == ["source port: refused as overlong_line: of no stream, no payload"]


def test_the_twin_knows_what_a_device_said_before(caplog: pytest.LogCaptureFixture) -> None:
    """A good line under a header of an earlier message is no culprit; afterwards the twin has forgotten it."""
    own, twin = decoder("csv"), decoder("csv")
    assert isinstance(own.memory, Stateful)  # type: ignore[attr-defined]
    poison = Poison({"plant": Search(twin, own.memory)}, clock=Clock())  # type: ignore[attr-defined]
    own.decode([message(b"flow,level")])
    messages = [message(b"1,2"), message(b"x,2"), message(b"3,4")]
    poison.observe("plant", messages, own.decode(messages))
    assert shown(caplog) == ["source plant: refused as parse: 'p1', 3 bytes: 'x,2'"]
    assert twin.memory.snapshot("plant\tp1") is None  # type: ignore[attr-defined]


def test_a_search_takes_no_more_than_a_fiftieth_of_the_time() -> None:
    """Where each decoding takes 5 ms, a flood of garbage costs 20 ms a second, however much there is."""
    clock = Clock()

    class Slow(Counting):
        def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
            clock.now_s += 0.005
            return super().decode(raw)

    twin = Slow(decoder())
    poison = Poison({"plant": Search(twin)}, DeadLetters(os.devnull, 1 << 40), clock=clock)
    begun = clock.now_s
    work = 0.0
    for _ in range(200):
        clock.now_s += 0.1
        before = clock.now_s
        observe(poison, [b"?"] * 100)
        work += clock.now_s - before
    assert work <= 0.02 * (clock.now_s - begun) + 0.02 + 0.005
    assert work > 0.01 * (clock.now_s - begun)


def letters(path: Path) -> list[dict[str, object]]:
    """What a file holds."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_dead_letters_say_when_who_and_why(tmp_path: Path) -> None:
    """The payload is text where it can be, base64 else, 4 KiB at most."""
    path = tmp_path / "dead.jsonl"
    poison = Poison({"plant": Search(decoder())}, DeadLetters(path, 1 << 20), clock=Clock())
    observe(poison, [GOOD, "größe".encode(), b"\xff\x00", b"?" + "ö".encode() * 4000])
    poison.close()
    first, second, third = letters(path)
    assert first == {
        "time": "2024-05-01T12:00:00Z", "source": "plant", "key": "p1", "reason": "parse", "bytes": 7,
        "payload": "größe",
    }  # fmt: skip
    assert (second["reason"], second["payload"]) == ("encoding", {"base64": "/wA="})
    assert (third["bytes"], third["payload"]) == (8001, "?" + "ö" * 2047)
    assert path.stat().st_mode & 0o777 == 0o600


def test_dead_letters_are_bounded(tmp_path: Path) -> None:
    """At its limit the file is put aside, in place of the one before, and begun anew."""
    path = tmp_path / "dead.jsonl"
    kept = DeadLetters(path, 1000)
    for number in range(100):
        kept.keep("plant", message(b"%d" % number), DropReason.PARSE)
        assert path.stat().st_size <= 1000
    kept.close()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dead.jsonl", "dead.jsonl.1"]
    both = letters(tmp_path / "dead.jsonl.1") + letters(path)
    assert [letter["payload"] for letter in both] == [str(number) for number in range(100 - len(both), 100)]
    assert len(both) > 5


def test_dead_letters_go_on_where_they_ended_even_half_way(tmp_path: Path) -> None:
    """A file of a killed process ends within a line; the next letter has a line of its own."""
    path = tmp_path / "dead.jsonl"
    for _ in range(2):
        kept = DeadLetters(path, 10_000)
        kept.keep("plant", message(b"a"), DropReason.PARSE)
        kept.close()
    assert len(letters(path)) == 2
    with path.open("ab") as file:
        file.write(b'{"time": "20')
    kept = DeadLetters(path, 10_000)
    kept.keep("plant", message(b"b"), DropReason.PARSE)
    kept.close()
    assert json.loads(path.read_text().splitlines()[-1])["payload"] == "b"
    assert len(path.read_text().splitlines()) == 4


def test_what_the_disk_refuses_is_said_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Until it takes one again."""
    kept = DeadLetters(tmp_path / "gone" / "dead.jsonl", 1000)
    for _ in range(5):
        kept.keep("plant", message(b"a"), DropReason.PARSE)
    (line,) = shown(caplog)
    assert line.endswith("dead.jsonl: dead letters cannot be kept: No such file or directory; said once")
    (tmp_path / "gone").mkdir()
    kept.keep("plant", message(b"a"), DropReason.PARSE)
    assert len(letters(tmp_path / "gone" / "dead.jsonl")) == 1
    kept.close()
    kept.close()


def test_a_full_disk_tears_no_line_of_what_comes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line is ended before the next one."""
    path = tmp_path / "dead.jsonl"
    kept = DeadLetters(path, 10_000)
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[:10]))
        kept.keep("plant", message(b"a"), DropReason.PARSE)
    kept.keep("plant", message(b"b"), DropReason.PARSE)
    kept.close()
    assert [len(line) > 10 for line in path.read_text().splitlines()] == [False, True]


def test_the_log_level_is_one_that_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    """A refused message is a warning."""
    poison = Poison({"plant": Search(decoder())}, clock=Clock())
    observe(poison, [b"?"])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
