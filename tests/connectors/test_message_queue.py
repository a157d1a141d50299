from __future__ import annotations

import threading

from stream_gru.connectors.sources.threaded import MessageQueue
from stream_gru.core.types import RawMessage
from tests.support.waiting import wait_for


def sized_message(size: int = 1, key: str = "") -> RawMessage:
    """A message of so many bytes."""
    return RawMessage(b"x" * size, key)


def never() -> bool:
    """The queue is not closing."""
    return False


def test_messages_come_out_in_order_and_are_counted() -> None:
    """First in, first out; length and bytes are those of the waiting messages."""
    queue = MessageQueue(10, 1000)
    for i in range(5):
        assert queue.put(sized_message(i, str(i)), never)
    assert (len(queue), queue.nbytes) == (5, 10)
    assert [one.key for one in queue.get(3, 0.0)] == ["0", "1", "2"]
    assert (len(queue), queue.nbytes) == (2, 7)
    assert [one.key for one in queue.get(9, 0.0)] == ["3", "4"]
    assert queue.get(9, 0.0) == []


def test_capacity_is_by_count_and_by_bytes() -> None:
    """Either bound applies; an empty queue takes a message that is larger than its capacity."""
    queue = MessageQueue(2, 100)
    assert queue.has_room(1000)
    assert queue.put(sized_message(1000), never)
    assert not queue.has_room(0)
    queue.get(1, 0.0)
    queue.put(sized_message(50), never)
    assert queue.has_room(50)
    assert not queue.has_room(51)
    queue.put(sized_message(1), never)
    assert not queue.has_room(0)


def test_put_waits_for_space_and_loses_nothing() -> None:
    """A queue of two passes a thousand messages in order."""
    queue = MessageQueue(2, 100)
    writer = threading.Thread(target=lambda: [queue.put(sized_message(1, str(i)), never) for i in range(1000)])
    writer.start()
    got: list[str] = []
    while len(got) < 1000:
        got += [one.key for one in queue.get(7, 5.0)]
        assert len(queue) <= 2
    writer.join(10)
    assert got == [str(i) for i in range(1000)]


def test_a_waiting_put_can_be_stopped() -> None:
    """With ``closing`` true a message without space is not taken."""
    queue = MessageQueue(1, 100)
    queue.put(sized_message(), never)
    stop = threading.Event()
    taken: list[bool] = []
    writer = threading.Thread(target=lambda: taken.append(queue.put(sized_message(), stop.is_set)))
    writer.start()
    assert writer.is_alive()
    stop.set()
    writer.join(10)
    assert taken == [False]
    assert len(queue) == 1


def test_closing_wakes_everyone() -> None:
    """Waiting readers get nothing, waiting writers are refused; queued messages can still be taken."""
    empty, full = MessageQueue(1, 100), MessageQueue(1, 100)
    full.put(sized_message(), never)
    answers: list[object] = []
    threads = [
        threading.Thread(target=lambda: answers.append(empty.get(1, 60.0))),
        threading.Thread(target=lambda: answers.append(full.put(sized_message(), never))),
    ]
    for thread in threads:
        thread.start()
    empty.close()
    full.close()
    for thread in threads:
        thread.join(10)
    wait_for(lambda: len(answers) == 2)
    assert [] in answers
    assert False in answers
    assert not full.put(sized_message(), never)
    assert len(full.get(5, 60.0)) == 1
    assert full.get(5, 60.0) == []


def test_the_bell_may_look_into_the_queue() -> None:
    """It rings after each accepted message, outside the lock."""
    seen: list[int] = []
    queue = MessageQueue(5, 100, on_put=lambda: seen.append(len(queue.get(1, 0.0))))
    for _ in range(3):
        queue.put(sized_message(), never)
    queue.close()
    queue.put(sized_message(), never)
    assert seen == [1, 1, 1]
