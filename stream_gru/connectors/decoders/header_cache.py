"""The names that devices sent once, as a header or labels, for the lines that follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, NamedTuple, TypeVar

from msgspec import Meta, Struct

from stream_gru.connectors.decoders.text import MAX_LINE_BYTES
from stream_gru.core.keyed_state import DirtySet, corrupt_state, decode, encode
from stream_gru.core.types import STREAM_ID, RawMessage

_DEVICES = 4096

T = TypeVar("T")


class _Stored(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The names of a device, and the time of their last use on a clock that counts uses."""

    used: Annotated[int, Meta(ge=0, le=2**62)]
    names: Annotated[list[str], Meta(max_length=MAX_LINE_BYTES + 1)]


class _Entry(NamedTuple, Generic[T]):
    stored: _Stored
    header: T


class HeaderCache(Generic[T]):
    """The last names of each device, as ``make`` converts them; fulfils `Stateful`.

    At most ``devices`` are kept: the least recently used one is dropped.  Names under a key that is no stream id are
    not kept.  A device is called ``source TAB key``, which is the name of no stream: to forget a stream drops nothing.
    """

    def __init__(self, make: Callable[[list[str]], T], devices: int = _DEVICES) -> None:
        self._make, self._devices = make, devices
        self._entries: dict[str, _Entry[T]] = {}  # the least recently used one is the first
        self._changes = DirtySet()
        self._uses = 0
        self._in_order = True

    def get(self, message: RawMessage) -> T | None:
        """The header of the device of this message, if any."""
        device = _device(message)
        entry = self._entries.get(device)
        if entry is None:
            return None
        if entry.stored.used != self._uses:
            self._use(device, entry.stored.names, entry.header)
        return entry.header

    def put(self, message: RawMessage, names: list[str]) -> None:
        """Keep names in place of the earlier ones of the device of this message."""
        if STREAM_ID.fullmatch(message.key):
            self._use(_device(message), names, self._make(names))

    def dirty_keys(self) -> tuple[str, ...]:
        """Devices whose names were set, used or dropped since the last `mark_clean`."""
        return self._changes.names()

    def mark_clean(self) -> None:
        """All changes are stored."""
        self._changes.clear()

    def snapshot(self, name: str) -> bytes | None:
        """The names of a device and their last use as bytes; None when it is unknown."""
        entry = self._entries.get(name)
        return None if entry is None else encode(entry.stored)

    def restore(self, name: str, data: bytes) -> None:
        """Take over what `snapshot` returned, in any order.  Raises StateError."""
        what = f"{name!r:.80} in a decoder"
        _, tab, key = name.rpartition("\t")
        if not tab or not STREAM_ID.fullmatch(key):
            raise corrupt_state(what, "expected the name of a source, a tab and a stream id")
        stored = decode(data, _Stored, what)
        self._entries[name] = _Entry(stored, self._make(stored.names))
        self._uses = max(self._uses, stored.used)
        self._in_order = False
        self._changes.drop(name)

    def evict(self, name: str) -> None:
        """Drop a device; an unknown one is ignored."""
        self._entries.pop(name, None)
        self._changes.drop(name)

    def _use(self, device: str, names: list[str], header: T) -> None:
        """Make a device the most recently used one."""
        if not self._in_order:
            self._entries = dict(sorted(self._entries.items(), key=lambda item: item[1].stored.used))
            self._in_order = True
        self._uses += 1
        self._entries.pop(device, None)
        self._entries[device] = _Entry(_Stored(self._uses, names), header)
        self._changes.add(device)
        while len(self._entries) > self._devices:
            oldest = next(iter(self._entries))
            del self._entries[oldest]
            self._changes.add(oldest)


def _device(message: RawMessage) -> str:
    return f"{message.source}\t{message.key}"
