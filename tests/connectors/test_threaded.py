from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from stream_gru.connectors.sources.threaded import ThreadedSource
from stream_gru.core.errors import DataError, EndOfInput, SourceUnavailable
from stream_gru.core.protocols import Source
from stream_gru.core.types import Position, RawMessage, SourceHealth
from tests.support.waiting import wait_for


class Scripted:
    """A source whose script defines each `open` and `poll`: messages are returned, exceptions are raised."""

    def __init__(self, *script: int | BaseException | None) -> None:
        self._script = list(script)
        self._number = 0
        self.opened: list[Position | None] = []
        self.committed: list[Position] = []
        self.closed = 0
        self.quiet = threading.Event()  # the script is over

    def open(self, position: Position | None) -> None:
        """None in the script: it opens."""
        self.opened.append(position)
        self._next()

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """A number in the script: so many messages."""
        if not self._script:
            self.quiet.set()
            threading.Event().wait(0.005)
            return []
        messages = []
        for _ in range(self._next()):
            self._number += 1
            messages.append(RawMessage(b"%d" % self._number, position=Position("s", self._number)))
        return messages

    def commit(self, position: Position) -> None:
        """Remember it."""
        self.committed.append(position)

    def close(self) -> None:
        """Count it."""
        self.closed += 1

    def health(self) -> SourceHealth:
        """Some metrics of its own."""
        return SourceHealth(qos0_messages=3, queued=1)

    def _next(self) -> int:
        step = self._script.pop(0) if self._script else None
        if isinstance(step, BaseException):
            raise step
        return step or 0


def threaded(
    source: Source,
    queue_size: int = 100,
    queue_bytes: int = 9999,
    reconnect_max_delay_s: float = 8.0,
    wakeup: Callable[[], None] | None = None,
    wait: Callable[[float], bool] | None = None,
    retry: bool = True,
) -> ThreadedSource:
    """A queued source that does not pause unless ``wait`` does."""
    return ThreadedSource(
        source,
        name="s",
        queue_size=queue_size,
        queue_bytes=queue_bytes,
        reconnect_max_delay_s=reconnect_max_delay_s,
        wakeup=wakeup,
        wait=wait or (lambda _: False),
        retry=retry,
    )


def drain_to_error(source: Source) -> tuple[list[int], BaseException]:
    """All messages, and the error that ended them."""
    numbers: list[int] = []
    for _ in range(10_000):
        try:
            numbers += [int(message.payload) for message in source.poll(10, 0.05)]
        except (EndOfInput, SourceUnavailable, DataError, ZeroDivisionError) as error:
            return numbers, error
    raise AssertionError("it did not end")


def test_messages_come_in_order_and_then_the_end() -> None:
    """The inner source's messages, then the end at every poll."""
    source = threaded(Scripted(None, 3, 0, 100, EndOfInput()), queue_size=7)
    assert isinstance(source, Source)
    source.open(None)
    numbers, end = drain_to_error(source)
    assert numbers == list(range(1, 104))
    assert isinstance(end, EndOfInput)
    for _ in range(3):
        with pytest.raises(EndOfInput):
            source.poll(1, 5.0)
    source.close()


def test_a_lost_source_is_found_again(caplog: pytest.LogCaptureFixture) -> None:
    """It is reopened after the last message it returned; each reason is logged once, and so is the recovery."""
    caplog.set_level(logging.INFO)
    gone, asleep = "no such device", SourceUnavailable("asleep")
    tries = [SourceUnavailable(gone) for _ in range(5)]
    inner = Scripted(*tries, None, 2, SourceUnavailable(gone), asleep, asleep, None, 1, EndOfInput())
    source = threaded(inner)
    source.open(Position("s", 9))
    assert drain_to_error(source)[0] == [1, 2, 3]
    assert inner.opened == [Position("s", 9)] * 6 + [Position("s", 2)] * 3
    assert source.health().reconnects == 1  # the first time it was opened, not reopened
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "s: not available, retrying: no such device"),
        ("INFO", "s: available again"),
        ("WARNING", "s: not available, retrying: no such device"),
        ("WARNING", "s: not available, retrying: asleep"),
        ("INFO", "s: available again"),
    ]
    source.close()
    assert inner.closed >= 8


def test_pauses_double_up_to_the_longest_and_are_short_again_after_a_message() -> None:
    """Pauses have jitter, so that many daemons do not reconnect at once."""
    pauses: list[float] = []

    def wait(pause_s: float) -> bool:
        pauses.append(pause_s)
        return False

    lost = SourceUnavailable("x")
    source = threaded(Scripted(*[lost] * 6, None, lost, None, 1, lost, None, EndOfInput()), wait=wait)
    source.open(None)
    drain_to_error(source)
    for pause, longest in zip(pauses, [0.5, 1, 2, 4, 8, 8, 8, 0.5], strict=True):
        assert longest / 2 <= pause <= longest
    source.close()


def test_without_retrying_a_loss_is_an_error() -> None:
    """A missing recording is not waited for; earlier messages are returned first."""
    for inner, expected in (
        (Scripted(SourceUnavailable("x")), []),
        (Scripted(None, 2, SourceUnavailable("x")), [1, 2]),
    ):
        source = threaded(inner, retry=False)
        source.open(None)
        numbers, error = drain_to_error(source)
        assert (numbers, type(error)) == (expected, SourceUnavailable)
        source.close()


@pytest.mark.parametrize("error", [DataError("a.csv: no such file"), ZeroDivisionError("a bug")])
def test_other_errors_reach_the_loop(error: Exception) -> None:
    """Neither an unusable input nor a bug stays in the thread."""
    for inner, expected in ((Scripted(error), []), (Scripted(None, 2, error), [1, 2])):
        source = threaded(inner)
        source.open(None)
        assert drain_to_error(source) == (expected, error)
        source.close()
        assert inner.closed == 1


def test_an_error_while_closing_reaches_the_loop_unless_there_was_one_before() -> None:
    """It is raised after the messages, and does not hide why the source was closed."""

    class Stuck(Scripted):
        def close(self) -> None:
            raise ZeroDivisionError("a bug in closing")

    for script, expected in ((DataError("useless"), DataError), (EndOfInput(), EndOfInput)):
        source = threaded(Stuck(None, 1, script))
        source.open(None)
        numbers, error = drain_to_error(source)
        assert (numbers, type(error)) == ([1], expected)
        source.close()
    stopped = Stuck(None, 1)
    source = threaded(stopped)
    source.open(None)
    stopped.quiet.wait(5)
    source.close()
    numbers, error = drain_to_error(source)
    assert (numbers, type(error)) == ([1], ZeroDivisionError)


@pytest.mark.parametrize("bounds", [{"queue_size": 3}, {"queue_bytes": 3}])
def test_a_full_queue_makes_the_source_wait_and_closing_ends_that(bounds: dict[str, Any]) -> None:
    """No more than the bounds is held, nothing is dropped, and a waiting thread can be stopped."""
    inner = Scripted(None, 9)
    source = threaded(inner, **bounds)
    source.open(None)
    wait_for(lambda: source.health().queued == 4)  # one is the inner source's
    assert source.health().queued_bytes == 3
    assert [message.payload for message in source.poll(2, 1.0)] == [b"1", b"2"]
    wait_for(lambda: source.health().queued == 4)
    source.close()
    assert inner.closed == 1


def test_it_can_be_closed_at_any_time_and_opened_again() -> None:
    """Before it was opened, twice, and during a pause."""
    inner = Scripted(None, 1)
    source = threaded(inner)
    source.close()
    source.open(None)
    source.poll(1, 5.0)
    source.close()
    source.close()
    source.open(Position("s", 1))
    inner.quiet.wait(5)
    assert source.health().connected
    source.close()
    assert not source.health().connected
    asleep = ThreadedSource(
        Scripted(*[SourceUnavailable("x")] * 9), name="s", queue_size=1, queue_bytes=1, reconnect_max_delay_s=1e6
    )
    asleep.open(None)
    asleep.close()


def test_a_thread_that_hangs_is_left_alone_and_not_doubled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Closing has a bound; opening again waits for the old thread."""
    monkeypatch.setattr("stream_gru.connectors.sources.threaded._CLOSE_S", 0.05)
    entered, release = threading.Event(), threading.Event()

    class Hanging(Scripted):
        def open(self, position: Position | None) -> None:
            entered.set()
            release.wait(10)

    source = threaded(Hanging())
    source.open(None)
    assert entered.wait(5)
    source.close()
    assert "still running" in caplog.text
    with pytest.raises(SourceUnavailable, match="still stopping"):
        source.open(None)
    release.set()
    monkeypatch.setattr("stream_gru.connectors.sources.threaded._CLOSE_S", 5.0)
    source.open(None)
    source.close()


def test_the_bell_rings_for_messages_and_for_the_end() -> None:
    """Either wakes a sleeping loop."""
    rung: list[int] = []
    source = threaded(Scripted(None, 2, EndOfInput()), wakeup=lambda: rung.append(1))
    source.open(None)
    drain_to_error(source)
    wait_for(lambda: len(rung) == 3)
    source.close()


def test_messages_say_which_source_they_are_of() -> None:
    """A source that does not set its name gets it here, where messages of several are merged."""
    source = threaded(Scripted(None, 1))
    source.open(None)
    assert source.poll(1, 5.0) == [RawMessage(b"1", position=Position("s", 1), source="s")]
    source.close()


def test_commits_and_figures_are_those_of_the_source() -> None:
    """A position is passed through; the queue's metrics are added to the source's own."""
    inner = Scripted(None, 2)
    source = threaded(inner)
    assert not source.health().connected
    source.open(None)
    inner.quiet.wait(5)
    assert source.health() == SourceHealth(connected=True, queued=3, queued_bytes=2, qos0_messages=3)
    source.commit(Position("s", 2))
    assert inner.committed == [Position("s", 2)]
    source.close()
