"""The names that devices sent once, as a header or labels, for the lines that follow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, NamedTuple, TypeVar

from msgspec import Meta, Struct

from stream_gru.connectors.decoders.text import MAX_LINE_BYTES
from stream_gru.core.keyed_state import KeyedState, corrupt_state, decode, encode
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


class HeaderCache(KeyedState[_Entry[T]]):
    """The last names of each device, as ``make`` converts them.

    At most ``devices`` are kept: the least recently used one is dropped.  Names under a key that is no stream id are
    not kept.  The key of a device is ``source TAB key``, which is the name of no stream: to forget a stream drops
    nothing.
    """

    def __init__(self, make: Callable[[list[str]], T], devices: int = _DEVICES) -> None:
        super().__init__(_Stored, "the headers of devices")
        self._make, self._devices = make, devices
        self._uses = 0
        self._in_order = True  # the least recently used device is the first

    def lookup(self, message: RawMessage) -> T | None:
        """Return the header of the device of this message, if any."""
        device = _device(message)
        entry = self.get(device)
        if entry is None:
            return None
        if entry.stored.used != self._uses:
            self._use(device, entry.stored.names, entry.header)
        return entry.header

    def learn(self, message: RawMessage, names: list[str]) -> None:
        """Keep names in place of the earlier ones of the device of this message."""
        if STREAM_ID.fullmatch(message.key):
            self._use(_device(message), names, self._make(names))

    def _use(self, device: str, names: list[str], header: T) -> None:
        """Make a device the most recently used one."""
        if not self._in_order:
            self._records = dict(sorted(self._records.items(), key=lambda item: item[1].stored.used))
            self._in_order = True
        self._uses += 1
        self._records.pop(device, None)
        self.put(device, _Entry(_Stored(self._uses, names), header))
        while len(self) > self._devices:
            self.delete(next(iter(self._records)))

    def _dump(self, record: _Entry[T]) -> bytes:
        return encode(record.stored)

    def _load(self, key: str, data: bytes) -> _Entry[T]:
        _, tab, stream = key.rpartition("\t")
        if not tab or not STREAM_ID.fullmatch(stream):
            raise corrupt_state(f"device {key!r:.80}", "expected the name of a source, a tab and a stream id")
        stored = decode(data, _Stored, f"device {key!r:.80}")
        self._uses = max(self._uses, stored.used)
        self._in_order = False
        return _Entry(stored, self._make(stored.names))


def _device(message: RawMessage) -> str:
    return f"{message.source}\t{message.key}"
