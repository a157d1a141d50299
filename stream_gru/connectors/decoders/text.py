"""Payloads of lines: strict UTF-8, each bad line counted; and how messages are named in errors."""

from __future__ import annotations

from stream_gru.core.types import DropReason, RawMessage

MAX_LINE_BYTES = 64 * 1024
_SHOWN = 80

_COMPRESSED = (
    b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0", b"\x04\x22\x4d\x18",
)  # fmt: skip


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


def decoded_lines(message: RawMessage) -> tuple[list[str], dict[DropReason, int]]:
    """Return the lines of a payload as text, and how many were not UTF-8, held NUL or were too long.

    A live payload that is compressed has no lines: it is one reject.
    """
    payload = message.payload
    rejected: dict[DropReason, int] = {}
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and "\0" not in text:
        lines = text.split("\n")
        if len(payload) <= MAX_LINE_BYTES or max(map(len, lines)) <= MAX_LINE_BYTES // 4:
            return lines, rejected
    if text is None and message.arrival_ns and is_compressed(payload):
        return [], {DropReason.ENCODING: 1}
    lines = []
    for line in payload.split(b"\n"):
        reason = _fault(line)
        if reason is None:
            lines.append(line.decode())
        else:
            rejected[reason] = rejected.get(reason, 0) + 1
    return lines, rejected


def is_compressed(payload: bytes) -> bool:
    """Whether a payload begins as gzip, zlib, zstd, bzip2, xz or LZ4 do; nobody unpacks it: it may be a bomb."""
    return payload.startswith(_COMPRESSED)


def unreadable(payload: bytes) -> DropReason:
    """Why bytes that are no record of a format of bytes are none."""
    return DropReason.ENCODING if is_compressed(payload) else DropReason.PARSE


def _fault(line: bytes) -> DropReason | None:
    if len(line) > MAX_LINE_BYTES:
        return DropReason.TOO_LARGE
    try:
        line.decode()
    except UnicodeDecodeError:
        return DropReason.ENCODING
    return DropReason.ENCODING if b"\0" in line else None
