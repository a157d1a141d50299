from __future__ import annotations

import threading

import pytest

from stream_gru.connectors.mqtt.ack_tracker import AckTracker
from stream_gru.connectors.mqtt.publisher import RetainedOutbox
from stream_gru.connectors.mqtt.reconnect import Backoff
from stream_gru.connectors.sinks.outbox import Outbox
from stream_gru.core.commit_records import FlushResult, OutboxRow, ProcessedPackets, SinkCheckpoint


def digest(message: int) -> bytes:
    """The digest of a message."""
    return b"%d" % message


def test_acknowledgements_are_in_the_order_of_arrival() -> None:
    """MQTT requires it, and redelivery without gaps depends on it."""
    tracker = AckTracker()
    tracker.connected(False)
    for mid in (5, 3, 9):
        tracker.on_message(mid, digest(mid), False)
    tracker.processed(3)
    assert tracker.pending_acks() == [5, 3, 9]
    assert tracker.pending_acks() == []


def test_numbers_continue_after_a_restart() -> None:
    """Messages with and without acknowledgement share one sequence of numbers."""
    tracker = AckTracker(41)
    tracker.connected(False)
    assert [tracker.on_qos0_message(), tracker.on_message(1, digest(1), False), tracker.on_qos0_message()] == [
        42,
        43,
        44,
    ]
    tracker.processed(44)
    assert tracker.pending_acks() == [1]


def test_an_identifier_that_is_used_again_is_a_new_message() -> None:
    """Another content, or no DUP flag after it was processed: no message is swallowed."""
    tracker = AckTracker()
    tracker.connected(False)
    tracker.on_message(1, digest(10), False)
    tracker.connected(True)
    assert tracker.on_message(1, digest(11), True) == 2
    tracker.processed(2)
    tracker.pending_acks()
    assert tracker.on_message(1, digest(11), False) == 3
    assert tracker.redelivered == 0


def test_what_an_earlier_process_has_processed_is_only_acknowledged() -> None:
    """By identifier and content, whether or not the DUP flag is set; and it is counted."""
    for again in (True, False):
        tracker = AckTracker(7, {1: digest(10), 2: digest(11)})
        tracker.connected(True)
        assert [tracker.on_message(1, digest(10), again), tracker.on_message(2, digest(11), again)] == [None, None]
        assert tracker.on_message(3, digest(10), again) == 8
        assert (tracker.pending_acks(), tracker.redelivered) == ([1, 2], 2)


def test_only_the_first_messages_of_a_connection_are_taken_for_repetitions_without_a_mark() -> None:
    """After the first new message, and after as many as are known, the same content is a new message."""
    known = {1: digest(5), 2: digest(5)}
    tracker = AckTracker(0, known)
    tracker.connected(True)
    assert [tracker.on_message(mid, digest(5), False) for mid in (3, 1, 2)] == [1, 2, 3]
    tracker = AckTracker(0, known)
    tracker.connected(True)
    assert [tracker.on_message(mid, digest(5), False) for mid in (1, 2, 1)] == [None, None, 1]
    assert tracker.on_message(2, digest(5), True) is None


def test_repetitions_are_not_acknowledged_ahead_of_what_came_before_them() -> None:
    """If a broker redelivers in another order, acknowledgements still follow the order of arrival."""
    tracker = AckTracker(0, {2: digest(2)})
    tracker.connected(True)
    assert [tracker.on_message(1, digest(1), False), tracker.on_message(2, digest(2), True)] == [1, None]
    assert tracker.pending_acks() == []
    tracker.processed(1)
    assert tracker.pending_acks() == [1, 2]


def test_receipts_are_what_was_not_written_yet() -> None:
    """Up to the position, the newest of each identifier last; unchanged until they are written."""
    tracker = AckTracker()
    tracker.connected(False)
    for mid in (1, 2, 3):
        tracker.on_message(mid, digest(mid), False)
    expected = ProcessedPackets({1: digest(1), 2: digest(2)}, new_session=True, limit=4096)
    assert [tracker.processed_packets(2), tracker.processed_packets(2)] == [expected, expected]
    tracker.processed(2)
    assert tracker.processed_packets(2) == ProcessedPackets(limit=4096)
    assert tracker.processed_packets(3) == ProcessedPackets({3: digest(3)}, limit=4096)


def test_a_session_that_is_lost_while_a_commit_is_written() -> None:
    """Its packets are written, but unknown in the new session; the next commit deletes them."""
    tracker = AckTracker()
    tracker.connected(False)
    for mid in (1, 2):
        tracker.on_message(mid, digest(mid), False)
    assert tracker.processed_packets(2).packets
    tracker.connected(False)
    assert tracker.on_message(1, digest(1), True) == 3
    tracker.processed(2)
    assert tracker.pending_acks() == []
    assert tracker.on_message(2, digest(2), True) == 4
    assert tracker.processed_packets(4) == ProcessedPackets({1: digest(1), 2: digest(2)}, new_session=True, limit=4096)
    tracker.processed(4)
    assert tracker.processed_packets(4) == ProcessedPackets(limit=4096)


def test_only_the_newest_packets_are_remembered() -> None:
    """Of the packets given at the start and of those that arrived."""
    tracker = AckTracker(0, {mid: digest(mid) for mid in (1, 2, 3)}, max_done=2)
    tracker.connected(True)
    assert [tracker.on_message(mid, digest(mid), True) for mid in (3, 2, 1)] == [None, None, 1]
    tracker.processed(1)
    assert [tracker.on_message(mid, digest(mid), True) for mid in (1, 3, 2)] == [None, None, 2]


def test_pauses_grow_and_are_never_all_the_same() -> None:
    """They double up to the maximum, lose up to half at random, and restart after a connection that lasted."""
    longest = Backoff(8.0, lambda: 0.0)
    assert [longest.pause_s(0.0) for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert longest.pause_s(1.0) == 8.0
    assert longest.pause_s(3.0) == 0.5
    shortest = Backoff(8.0, lambda: 1.0)
    assert [shortest.pause_s(0.0) for _ in range(3)] == [0.25, 0.5, 1.0]
    assert Backoff(0.1, lambda: 0.0).pause_s(0.0) == pytest.approx(0.1)


def outbox_rows(*names: str) -> list[OutboxRow]:
    """Some rows."""
    return [OutboxRow("t", b"1234", name) for name in names]


def sendable(outbox: Outbox) -> list[str]:
    """All rows that may be sent now."""
    return [row.key for row in iter(outbox.take, None)]


def test_rows_that_were_not_answered_are_sent_again_first() -> None:
    """After a reconnect the order is unchanged, and no acknowledged row is resent."""
    outbox = Outbox(10)
    outbox.put(outbox_rows(*"abcd"))
    under_way = [outbox.take() for _ in range(3)]
    assert under_way[0] is not None
    outbox.ack(under_way[0])
    assert [row.key for row in outbox.requeue()] == ["b", "c"]
    assert sendable(outbox) == ["b", "c", "d"]
    assert len(outbox) == 3


def test_a_full_outbox_accepts_rows_and_is_not_ready() -> None:
    """A batch is never split; the outbox is ready again after acknowledgements."""
    outbox = Outbox(2)
    outbox.put(outbox_rows("a", "b", "c"))
    assert (len(outbox), outbox.ready, outbox.dropped) == (3, False, 0)
    for _ in range(2):
        row = outbox.take()
        assert row is not None
        outbox.ack(row)
    assert outbox.ready


def test_a_full_outbox_may_drop_the_oldest() -> None:
    """The oldest unsent row, which is counted; if all were sent, the new one.  A stored row is deleted there."""
    outbox = Outbox(2, drop_oldest=True)
    outbox.resume(SinkCheckpoint(unacked=[OutboxRow("t", b"1234", "a", 7)], last_number=8))
    outbox.put(outbox_rows("b", "c"))
    assert (outbox.ready, len(outbox), outbox.dropped) == (True, 2, 1)
    assert outbox.flush() == FlushResult(unacked=[*rows_numbered(9, "b", "c")], acked=(7,))
    outbox.committed()
    assert sendable(outbox) == ["b", "c"]
    outbox.put(outbox_rows("d"))
    assert (len(outbox), outbox.dropped) == (2, 2)


def test_a_row_dropped_meanwhile_is_not_dropped_again() -> None:
    """The loop may drop it between requeue and drop: it is counted once, and the next row is kept."""
    outbox = Outbox(1, drop_oldest=True)
    outbox.put(outbox_rows("a"))
    outbox.take()
    (first,) = outbox.requeue()
    outbox.put(outbox_rows("b"))
    outbox.drop(first)
    assert (outbox.dropped, outbox.failed) == (1, 0)
    assert sendable(outbox) == ["b"]


def rows_numbered(first: int, *names: str) -> list[OutboxRow]:
    """Rows as they are after `put`."""
    return [OutboxRow("t", b"1234", name, first + n) for n, name in enumerate(names)]


def test_nothing_is_sent_before_it_is_stored_unless_it_may() -> None:
    """With a store a row waits for its commit; in immediate mode, or without a store, it does not."""
    for immediate, kept, early in (
        (False, SinkCheckpoint(), []),
        (True, SinkCheckpoint(), ["a"]),
        (False, None, ["a"]),
    ):
        outbox = Outbox(10, immediate=immediate)
        outbox.resume(kept)
        outbox.put(outbox_rows("a"))
        assert sendable(outbox) == early
        assert outbox.flush() == FlushResult(unacked=rows_numbered(1, "a"))
        outbox.put(outbox_rows("b"))
        outbox.committed()
        assert sendable(outbox) == (["b"] if early else ["a"])


def test_an_answer_between_flush_and_commit_is_reported_by_the_next_commit() -> None:
    """The row is being stored at that moment: it has to be deleted afterwards."""
    outbox = Outbox(10, immediate=True)
    outbox.resume(SinkCheckpoint())
    outbox.put(outbox_rows("a"))
    row = outbox.take()
    assert row is not None
    assert outbox.flush().unacked
    outbox.ack(row)
    outbox.committed()
    assert [outbox.flush(), outbox.flush()] == [FlushResult(unacked=[], acked=(1,))] * 2
    outbox.committed()
    assert outbox.flush() == FlushResult(unacked=[], acked=())


@pytest.mark.parametrize("early", [False, True])
def test_a_successor_may_resume_before_or_after_it_takes_over(early: bool) -> None:
    """Stored rows come once, rows the old outbox got an answer for not at all, and new ones are held back."""
    old, heir = Outbox(10), Outbox(10)
    kept = SinkCheckpoint(unacked=rows_numbered(1, *"abcd"), last_number=4)
    old.resume(kept)
    old.put(outbox_rows("e"))
    answered = old.take()
    assert answered is not None
    if early:
        heir.resume(kept)
        for _ in range(3):
            row = heir.take()
            assert row is not None
            if row.key == "b":
                heir.ack(row)
    old.ack(answered)
    heir.adopt(old.handoff())
    heir.resume(None if early else kept)
    assert sendable(heir) == (["d"] if early else ["b", "c", "d"])
    written = heir.flush()
    assert (written.unacked, sorted(written.acked)) == (rows_numbered(5, "e"), [1, 2] if early else [1])


def test_only_the_newest_notice_of_a_topic_is_published() -> None:
    """A stream that went offline and came back while the broker was down is online; a cancelled topic stays silent."""
    retained = RetainedOutbox(threading.Condition())
    retained.put("x", b"offline")
    retained.put("y", b"online")
    retained.put("x", b"online")
    items = list(iter(retained.take, None))
    assert [(item.topic, item.payload) for item in items] == [("y", b"online"), ("x", b"online")]
    assert not retained.idle
    for _ in items:
        retained.done()
    retained.block("y")
    retained.put("y", b"online")
    assert retained.take() is None
    assert retained.idle
