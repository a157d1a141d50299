"""What devices said of their lines once, before the lines that need it: a header, labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Generic, NamedTuple, TypeVar

from msgspec import Meta, Struct

from stream_gru.connectors.decoders.text import MAX_LINE_BYTES
from stream_gru.core.keyed_state import DirtySet, corrupt_state, decode, encode
from stream_gru.core.types import STREAM_ID, RawMessage

_DEVICES = 4096

T = TypeVar("T")


class _Said(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The names that a device said, and the turn in which it was asked for last; turns go up by one."""

    turn: Annotated[int, Meta(ge=0, le=2**62)]
    names: Annotated[list[str], Meta(max_length=MAX_LINE_BYTES + 1)]


class _Known(NamedTuple, Generic[T]):
    said: _Said
    made: T


class Memory(Generic[T]):
    """The names that each device said last, as ``make`` has them; fulfils `Stateful`.

    Of ``devices`` at most: the one not asked for longest is forgotten.  One whose key is no stream id is not remembered
    at all.  The name of a device is ``source TAB key``, that of no stream: who lets go of a stream does not mean it.
    """

    def __init__(self, make: Callable[[list[str]], T], devices: int = _DEVICES) -> None:
        self._make, self._devices = make, devices
        self._known: dict[str, _Known[T]] = {}  # the one asked for longest ago is the first
        self._changes = DirtySet()
        self._turn = 0
        self._in_order = True

    def get(self, message: RawMessage) -> T | None:
        """What was made of the names that the device of this message said, if any."""
        device = _device(message)
        known = self._known.get(device)
        if known is None:
            return None
        if known.said.turn != self._turn:
            self._use(device, known.said.names, known.made)
        return known.made

    def put(self, message: RawMessage, names: list[str]) -> None:
        """Remember names, in place of those that the device said before."""
        if STREAM_ID.fullmatch(message.key):
            self._use(_device(message), names, self._make(names))

    def dirty_keys(self) -> tuple[str, ...]:
        """Devices that said something or were asked for since the last `mark_clean`, and those forgotten for others."""
        return self._changes.names()

    def mark_clean(self) -> None:
        """What has changed was written down."""
        self._changes.clear()

    def snapshot(self, name: str) -> bytes | None:
        """What a device said, and when it was asked for; None when it is unknown."""
        known = self._known.get(name)
        return None if known is None else encode(known.said)

    def restore(self, name: str, data: bytes) -> None:
        """Remember what `snapshot` gave, in any order.  Raises StateError."""
        what = f"{name!r:.80} in a decoder"
        _, tab, key = name.rpartition("\t")
        if not tab or not STREAM_ID.fullmatch(key):
            raise corrupt_state(what, "expected the name of a source, a tab and a stream id")
        said = decode(data, _Said, what)
        self._known[name] = _Known(said, self._make(said.names))
        self._turn = max(self._turn, said.turn)
        self._in_order = False
        self._changes.drop(name)

    def evict(self, name: str) -> None:
        """Let go of a device; quiet when it is unknown."""
        self._known.pop(name, None)
        self._changes.drop(name)

    def _use(self, device: str, names: list[str], made: T) -> None:
        """It is the turn of this device: it becomes the last one."""
        if not self._in_order:
            self._known = dict(sorted(self._known.items(), key=lambda item: item[1].said.turn))
            self._in_order = True
        self._turn += 1
        self._known.pop(device, None)
        self._known[device] = _Known(_Said(self._turn, names), made)
        self._changes.add(device)
        while len(self._known) > self._devices:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._changes.add(oldest)


def _device(message: RawMessage) -> str:
    return f"{message.source}\t{message.key}"
