from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.mqtt.backoff import Backoff
from stream_gru.mqtt.ledger import Ledger
from stream_gru.mqtt.outbox import Outbox, Outgoing


class ModelBroker:
    """What a broker remembers of one session: messages that were not acknowledged, by packet identifier."""

    def __init__(self) -> None:
        self.waiting: dict[int, int] = {}
        self.next_mid = 1

    def publish(self, message: int) -> int:
        """Give a new message the next identifier that is free."""
        while self.next_mid in self.waiting:
            self.next_mid = self.next_mid % 8 + 1
        mid = self.next_mid
        self.waiting[mid] = message
        self.next_mid = mid % 8 + 1
        return mid

    def forget(self) -> None:
        """Begin a new session."""
        self.__init__()  # type: ignore[misc]


ACTIONS = st.lists(st.sampled_from(["publish", "process", "ack", "cut", "cut_late", "forget"]), max_size=60)


@given(ACTIONS, st.booleans())
def test_only_processed_messages_are_acknowledged_and_none_is_taken_twice(actions: list[str], same: bool) -> None:
    """Whatever breaks in whatever order: the broker deletes nothing that was not processed, and while the session
    lasts every message is taken exactly once.  ``same``: all messages say the same.
    """
    broker, ledger = ModelBroker(), Ledger()
    ledger.connected(False)
    taken: list[int] = []
    processed, message = 0, 0

    def deliver(mid: int, again: bool) -> None:
        content = broker.waiting[mid]
        if ledger.arrived(mid, 0 if same else content, again) is not None:
            taken.append(content)

    for action in actions:
        if action == "publish" and len(broker.waiting) < 6:
            message += 1
            deliver(broker.publish(message), False)
        elif action == "process" and processed < len(taken):
            processed += 1
            ledger.processed(processed)
        elif action == "ack":
            for mid in ledger.take_acks():
                assert broker.waiting.pop(mid) in taken[:processed]
        elif action in ("cut", "cut_late"):
            if action == "cut_late":
                ledger.take_acks()  # written to a socket that was dead
            ledger.connected(True)
            for mid in list(broker.waiting):
                deliver(mid, True)
        elif action == "forget":
            broker.forget()
            ledger.connected(False)
    if "forget" not in actions:
        assert taken == list(range(1, message + 1))
    assert len(taken) == len(set(taken))


def test_acknowledgements_are_in_the_order_of_arrival() -> None:
    """MQTT wants it so, and redelivery without gaps depends on it."""
    ledger = Ledger()
    ledger.connected(False)
    for mid in (5, 3, 9):
        ledger.arrived(mid, mid, False)
    ledger.processed(3)
    assert ledger.take_acks() == [5, 3, 9]
    assert ledger.take_acks() == []


def test_numbers_go_on_after_a_restart() -> None:
    """Messages with and without acknowledgement share one row of numbers."""
    ledger = Ledger(41)
    ledger.connected(False)
    assert [ledger.unprotected(), ledger.arrived(1, 1, False), ledger.unprotected()] == [42, 43, 44]
    ledger.processed(44)
    assert ledger.take_acks() == [1]


def test_an_identifier_that_is_used_again_is_a_new_message() -> None:
    """Another content, or no word of repetition after it was processed: nothing is swallowed."""
    ledger = Ledger()
    ledger.connected(False)
    ledger.arrived(1, 10, False)
    ledger.connected(True)
    assert ledger.arrived(1, 11, True) == 2
    ledger.processed(2)
    ledger.take_acks()
    assert ledger.arrived(1, 11, False) == 3


def test_pauses_grow_and_are_never_all_the_same() -> None:
    """They double up to the longest, lose up to half, and begin anew after a connection that lasted."""
    longest = Backoff(8.0, lambda: 0.0)
    assert [longest.pause_s(0.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert longest.pause_s(1.0) == 8.0
    assert longest.pause_s(3.0) == 0.5
    shortest = Backoff(8.0, lambda: 1.0)
    assert [shortest.pause_s(0.0) for _ in range(3)] == [0.25, 0.5, 1.0]
    assert Backoff(0.1, lambda: 0.0).pause_s(0.0) == pytest.approx(0.1)


def row(name: str) -> Outgoing:
    """A row."""
    return Outgoing("t", b"1234", name)


def test_rows_that_were_not_answered_are_sent_again_first() -> None:
    """After a reconnect the order is the old one, and nothing that was answered comes again."""
    outbox = Outbox(10)
    for name in "abcd":
        assert outbox.put(row(name))
    for mid in (1, 2, 3):
        item = outbox.take()
        assert item is not None
        outbox.sent(mid, item)
    settled = outbox.settled(1)
    assert settled is not None
    outbox.confirmed(settled)
    assert [item.key for item in outbox.recall()] == ["b", "c"]
    assert outbox.settled(2) is None
    assert [item.key for item in iter(outbox.take, None)] == ["b", "c", "d"]
    assert outbox.confirmed_bytes == 4


def test_a_bounded_outbox() -> None:
    """Full is full, or the oldest that was not sent goes and is counted; if all were sent, the new one."""
    outbox = Outbox(2)
    assert outbox.put(row("a"))
    assert outbox.put(row("b"))
    assert not outbox.put(row("c"))
    assert outbox.put(row("c"), drop_oldest=True)
    taken = [outbox.take(), outbox.take()]
    assert [item.key for item in taken if item] == ["b", "c"]
    assert outbox.put(row("d"), drop_oldest=True)
    assert (len(outbox), outbox.discarded) == (2, 2)


def test_only_the_newest_notice_of_a_topic_is_sent_and_before_rows() -> None:
    """A stream that went and came back while the broker was away is online."""
    outbox = Outbox(2)
    outbox.put(row("a"))
    outbox.notice("x", b"offline")
    outbox.notice("y", b"online")
    outbox.notice("x", b"online")
    items = [item for item in (outbox.take(), outbox.take(), outbox.take()) if item]
    assert [(item.topic, item.payload) for item in items] == [("y", b"online"), ("x", b"online"), ("t", b"1234")]
    outbox.give_up(items[0])
    outbox.notice("y", b"online")
    assert outbox.take() is None
