"""Pieces of C source: literals, comments and arrays that mean exactly what the bundle says, whatever it is called."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stream_gru.core.types import F32

_PER_LINE = 8
_BYTES_PER_LINE = 16


def number(value: float) -> str:
    """A float literal that is read back as the same float32.

    >>> number(1 / 3), number(3)
    ('0.333333333f', '3.0f')
    """
    text = f"{float(value):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def string(text: str) -> str:
    r"""A string literal of UTF-8 bytes, in ASCII, without trigraphs.

    >>> print(string('a "b" \u00b0C?'))
    "a \"b\" \302\260C\077"
    """
    return '"' + "".join(_character(byte) for byte in text.encode("utf-8", "replace")) + '"'


def _character(byte: int) -> str:
    # Octal, as a hexadecimal escape would go on into the next letter; the question mark because of trigraphs.
    char = chr(byte)
    if char in '"\\':
        return f"\\{char}"
    return char if 32 <= byte < 127 and char != "?" else f"\\{byte:03o}"


def quoted(text: str) -> str:
    """A name as it may stand in a comment: it cannot end it, nor hold what is not seen.

    >>> quoted('flow */ x')
    "'flow *_ x'"
    """
    seen = "".join(char if char.isprintable() and char not in "\\?" else "_" for char in text)
    return "'" + seen.replace("*/", "*_").replace("/*", "_*") + "'"


def array(name: str, values: F32, note: str = "") -> str:
    """A constant array; a matrix is written row by row, each row from a new line."""
    rows = values.reshape(-1, values.shape[-1])
    lines = [line for row in rows for line in _lines([number(value) for value in row.tolist()], _PER_LINE)]
    return _array(f"static const float {name}[{values.size}]", lines, note)


def integers(name: str, values: Sequence[int]) -> str:
    """A constant array of int."""
    return _array(f"static const int {name}[{len(values)}]", _lines([str(value) for value in values], _PER_LINE))


def strings(name: str, size: str, values: Sequence[str]) -> str:
    """A constant array of strings, visible outside."""
    return _array(f"const char *const {name}[{size}]", [f"{string(value)}," for value in values])


def byte_lines(data: bytes) -> list[str]:
    """The initialisers of an array of bytes."""
    return _lines([f"0x{byte:02x}" for byte in data], _BYTES_PER_LINE)


def comment(lines: Iterable[str]) -> str:
    """A block comment; names in it have been `quoted`."""
    return "\n".join(["/*", *(f" * {line}".rstrip() for line in lines), " */"])


def _lines(items: Sequence[str], width: int) -> list[str]:
    return [", ".join(items[start : start + width]) + "," for start in range(0, len(items), width)]


def _array(declaration: str, lines: Iterable[str], note: str = "") -> str:
    head = f"/* {note} */\n" if note else ""
    return "\n".join([f"{head}{declaration} = {{", *(f"    {line}" for line in lines), "};"])
