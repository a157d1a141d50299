"""What a persistent session is subscribed to, over restarts of the daemon."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

log = logging.getLogger(__name__)


class Subscriptions:
    """The filters that one session shall have; all but `want` and `complete` belong to the thread of the connection.

    A session keeps its subscriptions while the daemon is away, also those that nobody wants any more.  What it was
    given is therefore kept in ``folder``, where there is one.  The first connection of a process subscribes to
    everything, which changes nothing where it is subscribed already.
    """

    def __init__(self, name: str, client_id: str, filters: Iterable[str], qos: int, folder: str = "") -> None:
        self._name, self._client_id, self._qos = name, client_id, qos
        self._path = Path(folder) / f"mqtt-{quote(client_id, safe='')}.json" if folder else None
        self._wanted = tuple(filters)
        self._held: set[str] | None = None
        self._asked: dict[int, tuple[str, ...]] = {}
        self._leaving: dict[int, tuple[str, ...]] = {}

    @property
    def complete(self) -> bool:
        """Whether the broker has granted all that is wanted; may be asked by any thread."""
        return self._held is not None and self._held.issuperset(self._wanted)

    def want(self, filters: Iterable[str]) -> None:
        """Have these from the next `agree` on; may be called by any thread."""
        self._wanted = tuple(filters)

    def connected(self, client: Client, session_present: bool) -> bool:
        """Subscribe to what the session has not, and drop what it should not have.

        Return whether the session is a new one although there was one before.
        """
        first = self._held is None
        held = self._load() if self._held is None else self._held
        self._held = held
        self._asked.clear()
        self._leaving.clear()
        lost = not session_present and bool(held)
        if lost:
            held.clear()
            self._save()
        if first:
            stale = held.difference(self._wanted)
            held.clear()
            held |= stale
        self.agree(client)
        return lost

    def agree(self, client: Client) -> None:
        """Bring the session to what is wanted."""
        held = self._held if self._held is not None else set()
        missing = tuple(sorted(set(self._wanted) - held))
        surplus = tuple(sorted(held.difference(self._wanted)))
        if missing:
            _, mid = client.subscribe(_subscription(client, missing, self._qos))
            if mid is not None:
                self._asked[mid] = missing
        if surplus:
            _, mid = client.unsubscribe(list(surplus))
            if mid is not None:
                self._leaving[mid] = surplus

    def subscribed(self, mid: int, refusals: Sequence[str]) -> None:
        """The broker's answer, filter by filter."""
        asked = self._asked.pop(mid, ())
        for text, refusal in zip(asked, refusals, strict=False):
            if refusal:
                log.error("source %s: the broker refused the subscription to %s: %s", self._name, text, refusal)
            elif self._held is not None:
                self._held.add(text)
        if asked:
            self._save()
        if asked and self.complete:
            log.info("source %s: subscribed to %d topics (%s)", self._name, len(self._wanted), self._client_id)

    def unsubscribed(self, mid: int) -> None:
        """The broker has forgotten these filters."""
        left = self._leaving.pop(mid, ())
        if left and self._held is not None:
            self._held.difference_update(left)
            self._save()

    def _load(self) -> set[str]:
        if self._path is None:
            return set()
        try:
            found = json.loads(self._path.read_bytes())["filters"]
            return {text for text in found if isinstance(text, str)}
        except FileNotFoundError:
            return set()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s: cannot be read, old subscriptions may stay: %s", self._path, error)
            return set()

    def _save(self) -> None:
        if self._path is None or self._held is None:
            return
        beside = self._path.with_name(self._path.name + ".new")
        try:
            with open(beside, "w", opener=_private) as file:
                json.dump({"filters": sorted(self._held)}, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self._path)
        except OSError as error:
            log.warning("%s: cannot be written, old subscriptions may stay: %s", self._path, error.strerror)


def _private(path: str, flags: int) -> int:
    """What the daemon remembers is nobody else's business."""
    return os.open(path, flags, 0o600)


def _subscription(client: Client, filters: Sequence[str], qos: int) -> list[tuple[str, SubscribeOptions]]:
    """What paho wants to hear; retained messages come only with a subscription that is new."""
    if client.protocol == MQTTProtocolVersion.MQTTv5:
        return [(text, SubscribeOptions(qos=qos, retainHandling=1)) for text in filters]
    return [(text, qos) for text in filters]  # type: ignore[misc]
