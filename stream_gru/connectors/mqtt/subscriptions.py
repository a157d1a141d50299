"""The subscriptions of a persistent session, across restarts of the daemon."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from stream_gru.connectors.folders import write_private

log = logging.getLogger(__name__)


class Subscriptions:
    """The filters of one session; all methods but `want` and `complete` belong to the thread of the connection.

    A session keeps its subscriptions while the daemon is not running, also obsolete ones.  The granted filters are
    therefore stored in ``folder``, where there is one.  The first connection of a process subscribes to everything,
    which changes nothing for existing subscriptions.
    """

    def __init__(self, name: str, client_id: str, filters: Iterable[str], qos: int, folder: str = "") -> None:
        self._name, self._client_id, self._qos = name, client_id, qos
        self._path = Path(folder) / f"mqtt-{quote(client_id, safe='')}.json" if folder else None
        self._wanted = tuple(filters)
        self._granted: set[str] | None = None
        self._subscribing: dict[int, tuple[str, ...]] = {}
        self._unsubscribing: dict[int, tuple[str, ...]] = {}

    @property
    def complete(self) -> bool:
        """Whether the broker has granted all wanted filters; any thread."""
        return self._granted is not None and self._granted.issuperset(self._wanted)

    def want(self, filters: Iterable[str]) -> None:
        """Set the filters for the next `agree`; any thread."""
        self._wanted = tuple(filters)

    def connected(self, client: Client, session_present: bool) -> bool:
        """Subscribe to missing filters, unsubscribe from obsolete ones; return whether the broker lost the session."""
        first = self._granted is None
        granted = self._load() if self._granted is None else self._granted
        self._granted = granted
        self._subscribing.clear()
        self._unsubscribing.clear()
        lost = not session_present and bool(granted)
        if lost:
            granted.clear()
            self._save()
        if first:
            stale = granted.difference(self._wanted)
            granted.clear()
            granted |= stale
        self.agree(client)
        return lost

    def agree(self, client: Client) -> None:
        """Subscribe and unsubscribe until the session has the wanted filters."""
        granted = self._granted if self._granted is not None else set()
        missing = tuple(sorted(set(self._wanted) - granted))
        surplus = tuple(sorted(granted.difference(self._wanted)))
        if missing:
            _, mid = client.subscribe(_subscription(client, missing, self._qos))
            if mid is not None:
                self._subscribing[mid] = missing
        if surplus:
            _, mid = client.unsubscribe(list(surplus))
            if mid is not None:
                self._unsubscribing[mid] = surplus

    def subscribed(self, mid: int, refusals: Sequence[str]) -> None:
        """The broker's response, filter by filter."""
        asked = self._subscribing.pop(mid, ())
        for text, refusal in zip(asked, refusals, strict=False):
            if refusal:
                log.error("source %s: the broker refused the subscription to %s: %s", self._name, text, refusal)
            elif self._granted is not None:
                self._granted.add(text)
        if asked:
            self._save()
        if asked and self.complete:
            log.info("source %s: subscribed to %d topics (%s)", self._name, len(self._wanted), self._client_id)

    def unsubscribed(self, mid: int) -> None:
        """The broker has removed these filters."""
        removed = self._unsubscribing.pop(mid, ())
        if removed and self._granted is not None:
            self._granted.difference_update(removed)
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
            log.warning("%s: cannot be read, obsolete subscriptions may remain: %s", self._path, error)
            return set()

    def _save(self) -> None:
        if self._path is None or self._granted is None:
            return
        try:
            write_private(self._path, json.dumps({"filters": sorted(self._granted)}).encode())
        except OSError as error:
            log.warning("%s: cannot be written, obsolete subscriptions may remain: %s", self._path, error.strerror)


def _subscription(client: Client, filters: Sequence[str], qos: int) -> list[tuple[str, SubscribeOptions]]:
    """The argument of paho's subscribe; retained messages come only with new subscriptions."""
    if client.protocol == MQTTProtocolVersion.MQTTv5:
        return [(text, SubscribeOptions(qos=qos, retainHandling=1)) for text in filters]
    return [(text, qos) for text in filters]  # type: ignore[misc]
