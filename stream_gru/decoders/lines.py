"""Payloads of lines: strict UTF-8, each bad line counted; and how messages are named in errors."""

from __future__ import annotations

from typing import Generic, TypeVar

from stream_gru.types import STREAM_ID, DropReason, RawMessage

MAX_LINE_BYTES = 64 * 1024
_SHOWN = 80
_DEVICES = 4096

T = TypeVar("T")


def origin(message: RawMessage) -> str:
    """Where a message came from, for errors: the whole path where there is one."""
    return message.position.name if message.position is not None else message.key


def shown(text: str) -> str:
    """Text of the input as an error may show it: short, and nothing in it that a terminal would obey."""
    safe = repr(text[: _SHOWN + 1])[1:-1]
    return safe if len(safe) <= _SHOWN else safe[:_SHOWN] + "..."


def is_blank(message: RawMessage, besides: str = "") -> bool:
    """Whether a live message says nothing: white space alone, and characters of ``besides``.

    False for recordings, whose messages are portions of a file and may hold blank lines only.
    """
    first = message.payload.lstrip()[:1]
    if not message.arrival_ns or (b" " < first < b"\x7f" and first not in besides.encode()):
        return False
    text = message.payload.decode(errors="replace").removeprefix("\ufeff")
    return not text.translate(dict.fromkeys(map(ord, besides), " ")).strip()


def decoded_lines(payload: bytes) -> tuple[list[str], dict[DropReason, int]]:
    """Return the lines of a payload as text, and how many were not UTF-8, held NUL or were too long."""
    rejected: dict[DropReason, int] = {}
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and "\0" not in text:
        lines = text.split("\n")
        if len(payload) <= MAX_LINE_BYTES or max(map(len, lines)) <= MAX_LINE_BYTES // 4:
            return lines, rejected
    lines = []
    for line in payload.split(b"\n"):
        reason = _fault(line)
        if reason is None:
            lines.append(line.decode())
        else:
            rejected[reason] = rejected.get(reason, 0) + 1
    return lines, rejected


def _fault(line: bytes) -> DropReason | None:
    if len(line) > MAX_LINE_BYTES:
        return DropReason.TOO_LARGE
    try:
        line.decode()
    except UnicodeDecodeError:
        return DropReason.ENCODING
    return DropReason.ENCODING if b"\0" in line else None


class Memory(Generic[T]):
    """What the lines of each device said last, of a bounded number of devices: the one not asked for longest is
    forgotten.  A device whose key is no stream id is not remembered at all.
    """

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], T] = {}

    def get(self, message: RawMessage) -> T | None:
        """What the device of this message said, if anything."""
        device = message.source, message.key
        said = self._said.pop(device, None)
        if said is not None:
            self._said[device] = said
        return said

    def put(self, message: RawMessage, said: T) -> None:
        """Remember it, in place of what it said before."""
        if not STREAM_ID.fullmatch(message.key):
            return
        device = message.source, message.key
        self._said.pop(device, None)
        if len(self._said) >= _DEVICES:
            del self._said[next(iter(self._said))]
        self._said[device] = said
