"""Commands, their queue, and the pause filter."""

from __future__ import annotations

import logging
import threading

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.core.errors import StateError
from stream_gru.core.types import DropReason, Rejected, SampleBatch, empty_batch
from stream_gru.runtime.control.commands import (
    Action,
    Command,
    CommandResult,
    Commands,
    RejectedCommands,
    parse_command,
)
from stream_gru.runtime.control.executor import PauseFilter
from tests.support.batches import batch, hostile_batches
from tests.support.stateful_parts import StateStore, hostile_bytes, rejected_or_usable


def no_reply(_: CommandResult) -> None:
    """A reply that does nothing."""


def names_of(rows: SampleBatch) -> list[str]:
    """Return the stream of each row."""
    return [rows.stream_names[i] for i in rows.stream_index]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"action": "reset", "stream": "pump-7"}, (Action.RESET, "pump-7")),
        ({"action": "pause", "all": True}, (Action.PAUSE, None)),
        ({"stream": "a/b c", "action": "resume"}, (Action.RESUME, "a/b c")),
    ],
)
def test_a_command_is_parsed(data: object, expected: tuple[Action, str | None]) -> None:
    """A command names an action and one stream or all."""
    assert parse_command(data) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "expected an object"),
        ([], "expected an object"),
        ("reset", "expected an object"),
        ({}, "action: expected reset, pause, resume, got None"),
        ({"action": "stop", "all": True}, "action: expected reset, pause, resume, got 'stop'"),
        ({"action": ["reset"], "all": True}, "action: expected"),
        ({"action": "RESET", "all": True}, "action: expected"),
        ({"action": "reset"}, "expected one of"),
        ({"action": "reset", "stream": "a", "all": True}, "expected one of"),
        ({"action": "reset", "all": False}, "all: expected true, got False"),
        ({"action": "reset", "all": 1}, "all: expected true, got 1"),
        ({"action": "reset", "stream": None}, "stream: expected"),
        ({"action": "reset", "stream": ""}, "stream: expected"),
        ({"action": "reset", "stream": "a\n"}, "stream: expected"),
        ({"action": "reset", "stream": "x" * 129}, "stream: expected"),
        ({"action": "reset", "all": True, "force": 1}, "got 'force'"),
        ({"action": "reset", "all": True, 5: 1}, "got '5'"),
    ],
)
def test_anything_else_is_rejected(data: object, expected: str) -> None:
    """Invalid data raises ValueError with what was expected, in a short line."""
    with pytest.raises(ValueError, match="expected") as caught:
        parse_command(data)
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 200


@given(st.recursive(st.none() | st.booleans() | st.text() | st.floats(), lambda v: st.dictionaries(st.text(), v)))
def test_no_data_breaks_the_parser(data: object) -> None:
    """Any data is a command or a ValueError."""
    try:
        action, _ = parse_command(data)
    except ValueError:
        return
    assert action in Action


def test_the_queue_has_a_bound_and_keeps_the_order() -> None:
    """Sixty-four commands wait, the next one is rejected; all leave the queue in order."""
    commands = Commands()
    given = [Command(Action.RESET, f"s{i}", no_reply) for i in range(65)]
    assert [commands.put(command) for command in given] == [True] * 64 + [False]
    assert commands.drain() == given[:64]
    assert commands.drain() == []
    assert commands.put(given[64])


def test_the_queue_is_safe_between_threads() -> None:
    """Each command put by many threads is taken once."""
    commands, taken = Commands(), list[Command]()
    threads = [
        threading.Thread(
            target=lambda n=n: [commands.put(Command(Action.PAUSE, f"{n}-{i}", no_reply)) for i in range(8)]
        )
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += commands.drain()
    taken += commands.drain()
    assert sorted(str(command.stream) for command in taken) == sorted(f"{n}-{i}" for n in range(8) for i in range(8))


def test_rejections_are_counted_and_logged_at_intervals(caplog: pytest.LogCaptureFixture) -> None:
    """Each rejection is counted; the log gets one line in ten seconds with the number in between."""
    reported, now = list[tuple[str, str]](), [0.0]
    refusals = RejectedCommands("MQTT", lambda action, why: reported.append((action, why)), clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, "stream_gru.runtime.control.commands"):
        for second in (0.0, 1.0, 9.9, 10.0, 19.0, 30.0, 50.0):
            now[0] = second
            refusals.report("reset", f"at {second}")
    assert reported == [("reset", f"at {second}") for second in (0.0, 1.0, 9.9, 10.0, 19.0, 30.0, 50.0)]
    assert caplog.messages == [
        "commands: reset over MQTT rejected: at 0.0",
        "commands: reset over MQTT rejected: at 10.0 (2 more since the last such line)",
        "commands: reset over MQTT rejected: at 30.0 (1 more since the last such line)",
        "commands: reset over MQTT rejected: at 50.0",
    ]


def test_without_paused_streams_the_batch_is_unchanged() -> None:
    """With no stream paused, or none of the batch, no row is copied."""
    pauses, rows = PauseFilter(), batch(["a", "b"], [0, 0])
    assert pauses.apply(rows) is rows
    pauses.pause("c")
    assert pauses.apply(rows) is rows
    assert pauses.names == ("c",)


def test_rows_of_paused_streams_are_rejected() -> None:
    """They are counted with their own reason, beside earlier rejects."""
    pauses = PauseFilter()
    pauses.pause("b")
    rows = batch(["a", "b", "a", "b"], [0, 0, 1, 1], device_seq=np.arange(4), rejected=(Rejected(DropReason.PARSE, 2),))
    left = pauses.apply(rows)
    assert names_of(left) == ["a", "a"]
    assert left.device_seq is not None
    assert left.device_seq.tolist() == [0, 2]
    assert left.rejected_counts == {DropReason.PARSE: 2, DropReason.PAUSED: 2}
    assert rows.rejected_counts == {DropReason.PARSE: 2}
    pauses.resume("b")
    assert pauses.apply(rows) is rows


def test_one_stream_can_be_resumed_while_all_are_paused() -> None:
    """It runs alone; resuming all ends the pause of all."""
    pauses, rows = PauseFilter(), batch(["a", "b", "new"], [0, 0, 0])
    pauses.pause(None)
    assert pauses.all_paused
    assert pauses.count(rows.stream_names) == 3
    assert len(pauses.apply(rows)) == 0
    pauses.resume("b")
    assert names_of(pauses.apply(rows)) == ["b"]
    assert not pauses.names
    assert pauses.resumed == ("b",)
    assert "a" in pauses
    assert "b" not in pauses
    pauses.pause("b")
    assert pauses.count(rows.stream_names) == 3
    pauses.resume("b")
    pauses.resume(None)
    assert not pauses.all_paused
    assert not pauses.names
    assert not pauses.resumed
    assert pauses.apply(rows) is rows


def test_a_batch_of_rejects_passes() -> None:
    """A batch without rows is unchanged while all streams are paused."""
    pauses, rows = PauseFilter(), empty_batch(3, (Rejected(DropReason.PARSE, 1),))
    pauses.pause(None)
    assert pauses.apply(rows) is rows


@given(hostile_batches(), st.lists(st.tuples(st.booleans(), st.sampled_from([None, "a", "b", "c", "d", "x"]))))
def test_received_is_kept(rows: SampleBatch, changes: list[tuple[bool, str | None]]) -> None:
    """With any pauses, every sample is a row or a reject, and the rows left are those of running streams."""
    pauses = PauseFilter()
    model: dict[str, bool] = dict.fromkeys(["a", "b", "c", "d", "x", *rows.stream_names], False)
    for pause, stream in changes:
        (pauses.pause if pause else pauses.resume)(stream)
        for name in model if stream is None else [stream]:
            model[name] = pause
    left = pauses.apply(rows)
    assert left.received == rows.received
    assert names_of(left) == [name for name in names_of(rows) if not model[name]]
    assert pauses.count(model) == sum(model.values())


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([None, "a", "b", "c"]), st.booleans())))
def test_pauses_survive_a_restart(changes: list[tuple[bool, str | None, bool]]) -> None:
    """By name, or all except those resumed; a difference to the store is dirty, and nothing is without a change."""
    pauses, stored = PauseFilter(), StateStore()
    changed = False
    for pause, stream, stop in changes:
        before = pauses.state.snapshot("")
        (pauses.pause if pause else pauses.resume)(stream)
        changed |= pauses.state.snapshot("") != before
        differs = pauses.state.snapshot("") != stored.rows.get("")
        assert differs <= (pauses.state.dirty_keys() == ("",)) <= changed
        if stop:
            stored.commit(pauses.state)
            changed = False
            after = PauseFilter()
            stored.fill(after.state)
            assert (after.all_paused, after.names, after.resumed) == (pauses.all_paused, pauses.names, pauses.resumed)
            pauses = after


def test_without_pauses_nothing_is_stored() -> None:
    """No state under any key; the stored one is deleted with the last pause, and other keys have no effect."""
    pauses, stored = PauseFilter(), StateStore()
    assert pauses.state.snapshot("") is None
    pauses.pause("a")
    assert pauses.state.snapshot("a") is None
    stored.commit(pauses.state)
    assert list(stored.rows) == [""]
    pauses.state.evict("a")
    assert "a" in pauses
    pauses.resume("a")
    stored.commit(pauses.state)
    assert not stored.rows
    pauses.pause("a")
    pauses.state.evict("")
    assert "a" not in pauses
    assert not pauses.state.dirty_keys()


@given(st.data())
def test_only_a_stored_pause_state_is_restored(data: st.DataObject) -> None:
    """Anything else is an error, as is another key, and changes nothing."""
    pauses, other, rows = PauseFilter(), PauseFilter(), batch(["a", "b"], [0, 0])
    pauses.pause("a")
    pauses.pause("x/y")
    genuine = pauses.state.snapshot("")
    assert genuine is not None
    with pytest.raises(StateError, match="stored state of paused streams is corrupt"):
        other.state.restore("a", genuine)
    rejected_or_usable(other.state, "", data.draw(hostile_bytes(genuine)), lambda: other.apply(rows))


def test_equal_pauses_give_equal_bytes() -> None:
    """In any order of the commands."""
    first, second = PauseFilter(), PauseFilter()
    names = [f"p{number}" for number in range(100)]
    for name in names:
        first.pause(name)
    for name in reversed(names):
        second.pause(name)
    data = first.state.snapshot("")
    assert data is not None
    assert data == second.state.snapshot("")
    assert msgspec.msgpack.decode(data) == [False, sorted(names)]
