"""Payloads of text: strict UTF-8 lines, and how messages and their text are shown in errors."""

from __future__ import annotations

from stream_gru.connectors.decoders.rejects import Rejects
from stream_gru.core.types import DropReason, RawMessage

BYTE_ORDER_MARK = "\ufeff"  # some tools write it at the beginning of a file or of each line
MAX_LINE_BYTES = 64 * 1024
_SHOWN = 80

_COMPRESSED = (
    b"\x1f\x8b", b"\x78\x01", b"\x78\x9c", b"\x78\xda", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ\0", b"\x04\x22\x4d\x18",
)  # fmt: skip


def origin(message: RawMessage) -> str:
    """Where a message came from, for errors: a path as it was given, a topic, else what names the input."""
    return message.topic or (message.position.name if message.position is not None else message.key)


def shown(text: str) -> str:
    """Text of the input for an error message: at most 80 characters, control characters escaped."""
    safe = repr(text[: _SHOWN + 1])[1:-1]
    return safe if len(safe) <= _SHOWN else safe[:_SHOWN] + "..."


def is_blank(message: RawMessage, separators: str = "") -> bool:
    """Whether a live message is empty or holds only white space and ``separators``.

    False for recordings: their messages are portions of a file and may consist of blank lines.
    """
    first = message.payload.lstrip()[:1]
    if not message.arrival_ns or (b" " < first < b"\x7f" and first not in separators.encode()):
        return False
    text = message.payload.decode(errors="replace").removeprefix(BYTE_ORDER_MARK)
    return not text.translate(dict.fromkeys(map(ord, separators), " ")).strip()


def decoded_lines(message: RawMessage, rejects: Rejects) -> list[str]:
    """Return the lines of a payload as text; lines that are not UTF-8, hold NUL or are too long are rejected.

    A blank line is in the place of each rejected one.  A compressed live payload has no lines: it is one reject.
    """
    payload = message.payload
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        text = None
    if text is not None and "\0" not in text:
        lines = text.split("\n")
        if len(payload) <= MAX_LINE_BYTES or max(map(len, lines)) <= MAX_LINE_BYTES // 4:
            return lines
    if text is None and message.arrival_ns and is_compressed(payload):
        rejects.add(DropReason.ENCODING, message)
        return []
    lines = []
    for number, line in enumerate(payload.split(b"\n"), 1):
        reason = _line_fault(line)
        lines.append("" if reason else line.decode())
        if reason:
            rejects.add(reason, message, number)
    return lines


def is_compressed(payload: bytes) -> bool:
    """Whether a payload begins like gzip, zlib, zstd, bzip2, xz or LZ4.

    Decision: compressed payloads are never unpacked, since a small one can expand to gigabytes.
    """
    return payload.startswith(_COMPRESSED)


def unreadable(payload: bytes) -> DropReason:
    """The reason to reject bytes that a binary format cannot read."""
    return DropReason.ENCODING if is_compressed(payload) else DropReason.PARSE


def _line_fault(line: bytes) -> DropReason | None:
    if len(line) > MAX_LINE_BYTES:
        return DropReason.TOO_LARGE
    try:
        line.decode()
    except UnicodeDecodeError:
        return DropReason.ENCODING
    return DropReason.ENCODING if b"\0" in line else None
