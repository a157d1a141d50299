"""C source text: literals, comments and arrays with the exact values and names of a bundle, safely escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stream_gru.core.types import F32

_PER_LINE = 8
_BYTES_PER_LINE = 16


def number(value: float) -> str:
    """A float literal that a compiler reads back as the same float32.

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
    # Octal, because a hexadecimal escape would include the next letter; the question mark because of trigraphs.
    char = chr(byte)
    if char in '"\\':
        return f"\\{char}"
    return char if 32 <= byte < 127 and char != "?" else f"\\{byte:03o}"


def quoted(text: str) -> str:
    """A name for a comment: it cannot end the comment and holds printable characters only.

    >>> quoted('flow */ x')
    "'flow *_ x'"
    """
    printable = "".join(char if char.isprintable() and char not in "\\?" else "_" for char in text)
    return "'" + printable.replace("*/", "*_").replace("/*", "_*") + "'"


def array(name: str, values: F32, note: str = "") -> str:
    """A constant array of float; each row of a matrix starts on a new line."""
    rows = values.reshape(-1, values.shape[-1])
    lines = [line for row in rows for line in _lines([number(value) for value in row.tolist()], _PER_LINE)]
    return _array(f"static const float {name}[{values.size}]", lines, note)


def integers(name: str, values: Sequence[int]) -> str:
    """A constant array of int."""
    return _array(f"static const int {name}[{len(values)}]", _lines([str(value) for value in values], _PER_LINE))


def strings(name: str, size: str, values: Sequence[str]) -> str:
    """A constant array of strings with external linkage."""
    return _array(f"const char *const {name}[{size}]", [f"{string(value)}," for value in values])


def byte_lines(data: bytes) -> list[str]:
    """The initialisers of an array of bytes."""
    return _lines([f"0x{byte:02x}" for byte in data], _BYTES_PER_LINE)


def comment(lines: Iterable[str]) -> str:
    """A block comment; names in it must be `quoted`."""
    return "\n".join(["/*", *(f" * {line}".rstrip() for line in lines), " */"])


def _lines(items: Sequence[str], width: int) -> list[str]:
    return [", ".join(items[start : start + width]) + "," for start in range(0, len(items), width)]


def _array(declaration: str, lines: Iterable[str], note: str = "") -> str:
    head = f"/* {note} */\n" if note else ""
    return "\n".join([f"{head}{declaration} = {{", *(f"    {line}" for line in lines), "};"])
