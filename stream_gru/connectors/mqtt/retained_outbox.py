"""What is said of how things are, retained by a broker: of each topic only the newest word matters."""

from __future__ import annotations

import threading

from stream_gru.core.commit_records import OutboxRow


class Notices:
    """Words that wait to be said.  Any thread puts them in, one takes them and tells when they were answered.

    ``changed`` guards all that is in here, and is notified whenever something was answered.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._waiting: dict[str, OutboxRow] = {}
        self._silenced: set[str] = set()
        self._under_way = 0

    @property
    def idle(self) -> bool:
        """Whether everything was said and answered."""
        with self._changed:
            return not (self._waiting or self._under_way)

    def put(self, topic: str, payload: bytes) -> None:
        """Have this said on ``topic``, in place of what was to be said there."""
        with self._changed:
            self._waiting.pop(topic, None)
            if topic not in self._silenced:
                self._waiting[topic] = OutboxRow(topic, payload)

    def take(self) -> OutboxRow | None:
        """The next one to say; tell `settle` when it was answered."""
        with self._changed:
            if not self._waiting:
                return None
            self._under_way += 1
            return self._waiting.pop(next(iter(self._waiting)))

    def settle(self) -> None:
        """One was answered, whatever the answer."""
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def recall(self) -> None:
        """The connection is another one: nothing is under way."""
        with self._changed:
            self._under_way = 0

    def silence(self, topic: str) -> None:
        """Never say anything on this topic."""
        with self._changed:
            self._silenced.add(topic)
            self._waiting.pop(topic, None)
            self._changed.notify_all()
