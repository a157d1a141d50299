"""Cells of text or numbers, as records hold them, become columns of a batch.

Text is read strictly: a number is decimal digits with point and exponent, and not everything that Python's ``float``
accepts (``1_0``, Arabic digits, blanks).  An empty field, ``nan``, ``na``, ``null`` and ``none`` mean: no value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import numpy as np

from stream_gru.config.field_types import TimeUnit
from stream_gru.core.timestamps import LIMIT_NS, UNITS_NS, epoch_to_ns, parse_iso
from stream_gru.core.types import F32, F64, I32, I64, STREAM_ID, DropReason, Mask

# Up to here a float64 holds every whole number.
EXACT = 2**53
_DIGITS = 20
# Cells joined by commas, which no number contains.
_PLAIN_NUMBERS = re.compile(r"[0-9+\-.eE,]*")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
_INTEGERS = re.compile(r"-?\d{1,19}(,-?\d{1,19})*", re.ASCII)
MISSING = frozenset({"", "nan", "-nan", "na", "null", "none"})
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}

_PLAIN = (str, int, float, np.generic, Decimal, type(None))

Column = Sequence[object]


class InvalidColumn(list[bool]):
    """A column of a type that no field has, such as lists or durations: True for each cell without a value."""


class DictionaryColumn(Sequence[object]):
    """A column with few distinct cells: ``codes`` (N,) are indices into ``distinct``, -1 for no value."""

    def __init__(self, distinct: Column, codes: I64) -> None:
        self.distinct = distinct
        self.codes = codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> object:  # type: ignore[override]
        code = int(self.codes[index])
        return None if code < 0 else self.distinct[code]


class RowFilter:
    """The ``good`` rows of one table, and the ``rejected`` ones by reason: a bad row has the first reason found."""

    def __init__(self, count: int) -> None:
        self.good: Mask = np.ones(count, np.bool_)
        self.rejected: dict[DropReason, Mask] = {}

    def reject(self, bad: Mask, reason: DropReason) -> None:
        """Reject the rows that are ``bad`` and still good."""
        new = bad & self.good
        if new.any():
            self.rejected[reason] = new | self.rejected.get(reason, False)
            self.good &= ~bad


def read_times(cells: Column, unit: TimeUnit, rows: RowFilter) -> I64:
    """Read event times, in nanoseconds; a row without one, or with an unreadable one, is rejected."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "M":
        return _instants(cells, rows)
    limit = LIMIT_NS // (1 if unit == "iso" else UNITS_NS[unit])
    if unit != "iso":
        whole_or_none = _all_whole_numbers(cells)
        plain = _all_fractions(cells) if whole_or_none is None else whole_or_none
        if plain is not None and ((plain > -limit) & (plain < limit)).all():
            return epoch_to_ns(plain, unit)
    rows.reject(np.array([cell is None or cell == "" for cell in cells], np.bool_), DropReason.MISSING_FIELD)
    if unit == "iso":
        texts = [cell if isinstance(cell, str) else "" for cell in cells]
        times, good = parse_iso(texts)
        rows.reject(~good, DropReason.TIMESTAMP)
        return times
    whole, exact = _whole_numbers(cells)
    numbers = whole if exact.all() else read_numbers(cells, rows, DropReason.TIMESTAMP)
    usable = np.where(exact, (whole > -limit) & (whole < limit), (numbers > -limit) & (numbers < limit))
    rows.reject(~usable, DropReason.TIMESTAMP)
    times = epoch_to_ns(np.where(usable & exact, whole, 0), unit)
    if not exact.all():
        times += epoch_to_ns(np.where(usable & ~exact, numbers, 0.0), unit)
    return times


def _instants(cells: np.ndarray[tuple[int, ...], np.dtype[np.datetime64]], rows: RowFilter) -> I64:
    """Read an Arrow column of instants, of any unit."""
    rows.reject(np.isnat(cells), DropReason.MISSING_FIELD)
    if np.datetime_data(cells.dtype)[0] not in ("s", "ms", "us", "ns"):
        cells = cells.astype("datetime64[s]")
    unit: Any = np.datetime_data(cells.dtype)[0]
    numbers = cells.astype(np.int64)
    limit = LIMIT_NS // UNITS_NS[unit]
    usable = (numbers > -limit) & (numbers < limit)
    rows.reject(~usable, DropReason.TIMESTAMP)
    return epoch_to_ns(np.where(usable, numbers, 0), unit)


def _whole_numbers(cells: Column) -> tuple[I64, Mask]:
    """(whole numbers, mask of the rows that hold one), not read as float64, which would round nanoseconds."""
    together = _all_whole_numbers(cells)
    if together is not None:
        return together, np.ones(len(cells), np.bool_)
    numbers, exact = np.zeros(len(cells), np.int64), np.zeros(len(cells), np.bool_)
    for index, cell in enumerate(cells):
        if type(cell) is int or (type(cell) is str and _INTEGER.fullmatch(cell)):
            number = int(cell)
            if -(2**63) <= number < 2**63:
                numbers[index], exact[index] = number, True
    return numbers, exact


def _all_whole_numbers(cells: Column) -> I64 | None:
    """All cells at once; None when any cell is no whole number."""
    if isinstance(cells, np.ndarray):
        if cells.dtype.kind not in "iu" or (cells.dtype == np.uint64 and (cells > 2**63 - 1).any()):
            return None
        return cells.astype(np.int64)
    kinds = set(map(type, cells))
    if kinds == {str} and not _INTEGERS.fullmatch(",".join(cells)):  # type: ignore[arg-type]
        return None
    if kinds not in ({str}, {int}):
        return None
    try:
        return np.array([int(cell) for cell in cells], np.int64)  # type: ignore[call-overload]
    except (ValueError, OverflowError):
        return None


def _all_fractions(cells: Column) -> F64 | None:
    """All cells at once; None when any cell is no number with a point."""
    kinds = set(map(type, cells))
    if kinds == {float}:
        return np.array(cells, np.float64)
    if kinds != {str} or not all("." in cell and _PLAIN_NUMBERS.fullmatch(cell) for cell in cells):  # type: ignore[operator, call-overload]
        return None
    try:
        return np.array(list(map(float, cells)))  # type: ignore[arg-type]
    except ValueError:
        return None


def read_numbers(cells: Column, rows: RowFilter, reason: DropReason = DropReason.PARSE) -> F64:
    """Read a column of numbers; NaN where there is none.  A row with text that is no number is rejected."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "fiu":
        return cells.astype(np.float64)
    kinds = set(map(type, cells))
    if kinds == {str}:
        return _numbers_of_text(cells, rows, reason)  # type: ignore[arg-type]
    if kinds <= {int, float, type(None)}:
        try:
            return np.array(cells, np.float64)
        except OverflowError:  # an integer beyond float64
            pass
    return _numbers_one_by_one(cells, rows, reason)


def _numbers_of_text(cells: Sequence[str], rows: RowFilter, reason: DropReason) -> F64:
    if _PLAIN_NUMBERS.fullmatch(",".join(cells)):
        try:
            return np.array([float(cell) if cell else math.nan for cell in cells])
        except ValueError:
            pass
    return _numbers_one_by_one(cells, rows, reason)


def _numbers_one_by_one(cells: Column, rows: RowFilter, reason: DropReason) -> F64:
    out = np.full(len(cells), np.nan)
    unreadable, wrong = np.zeros(len(cells), np.bool_), np.zeros(len(cells), np.bool_)
    for index, cell in enumerate(cells):
        if isinstance(cell, str):
            text = cell.strip(" \t")
            if NUMBER.fullmatch(text):
                out[index] = float(text)
            elif text.lower() not in MISSING:
                unreadable[index] = True
        elif isinstance(cell, int | float | np.number) and not isinstance(cell, bool):
            out[index] = _as_float(cell)
        elif cell is not None:
            wrong[index] = True
    rows.reject(unreadable, reason)
    rows.reject(wrong, DropReason.TYPE)
    return out


def reject_unrepresentable(cells: Column, numbers: F64, values: F32, rows: RowFilter) -> None:
    """Reject the rows whose ``cells`` are infinite, too large for float32, or whole numbers that float64 rounds.

    ``numbers`` are those read from the cells of one channel, ``values`` the same after scale and offset.
    """
    whole = np.zeros(len(values), np.bool_)
    infinite = whole.copy()
    for index in np.flatnonzero((np.abs(numbers) >= EXACT) | np.isinf(values)).tolist():
        cell = cells[index]
        if isinstance(cell, str):
            whole[index], infinite[index] = is_inexact(cell), "n" in cell.lower()
        elif isinstance(cell, float | np.floating):
            infinite[index] = np.isinf(cell)
        elif isinstance(cell, int | np.integer):
            whole[index] = abs(int(cell)) > EXACT
    rows.reject(infinite, DropReason.NON_FINITE)
    rows.reject(whole | np.isinf(values), DropReason.OUT_OF_RANGE)


def is_inexact(text: str) -> bool:
    """Whether text is a whole number beyond the range in which float64 holds every one."""
    digits = text.strip(" \t").lstrip("+-0")
    return digits.isdigit() and (len(digits) > _DIGITS or int(digits) > EXACT)


def _as_float(number: float | np.number[Any]) -> float:
    """The number as float64; infinite for an integer out of its range."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def read_streams(cells: Column, rows: RowFilter) -> tuple[tuple[str, ...], I32]:
    """Read stream names: (names, index of each row's); a row without one, or with an invalid one, is rejected."""
    names, stream = _names(cells)
    bad = np.array([not STREAM_ID.fullmatch(name) for name in names], np.bool_)
    if bad.any():
        rows.reject(stream == (names.index("") if "" in names else -1), DropReason.MISSING_FIELD)
        rows.reject(bad[stream], DropReason.BAD_STREAM_ID)
    return tuple(names), stream


def read_labels(cells: Column) -> tuple[tuple[str, ...], I32]:
    """Read labels: (names, index of each row's); -1 for a row without one, which is not rejected."""
    names, label = _names(cells)
    if "" not in names:
        return tuple(names), label
    absent = names.index("")
    code = np.arange(len(names), dtype=np.int32)
    code[absent], code[absent + 1 :] = -1, code[absent + 1 :] - 1
    return tuple(name for name in names if name), code[label]


def _names(cells: Column) -> tuple[list[str], I32]:
    """The distinct texts in order of first appearance, and the index of each cell's."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iu":
        cells = DictionaryColumn(*np.unique(cells, return_inverse=True))
    index: dict[str, int] = {}
    if not isinstance(cells, DictionaryColumn):
        each = np.array([index.setdefault(text, len(index)) for text in _texts(cells)], np.int32)
        return list(index), each
    count, rows = len(cells.distinct), len(cells)
    code = np.where(cells.codes < 0, count, cells.codes)
    first = np.full(count + 1, rows, np.int64)
    first[code[::-1]] = np.arange(rows - 1, -1, -1)  # of several, the last one written stays
    used = np.argsort(first, kind="stable")[: np.count_nonzero(first < rows)]
    place = np.zeros(count + 1, np.int32)
    texts = ("" if code == count else _text(cells.distinct[code]) for code in used.tolist())
    place[used] = [index.setdefault(text, len(index)) for text in texts]
    return list(index), place[code]


def _texts(cells: Column) -> Sequence[str]:
    return cells if set(map(type, cells)) == {str} else [_text(cell) for cell in cells]  # type: ignore[return-value]


def _text(cell: object) -> str:
    """A cell as a name: text unchanged, whole numbers without a point, booleans as in JSON, no value as ``""``."""
    if not isinstance(cell, _PLAIN):  # a list, bytes: no name, and perhaps too deep for str()
        return "[]"
    if cell is None or cell != cell:  # NaN, Arrow's missing float
        return ""
    if isinstance(cell, bool | np.bool_):
        return str(cell).lower()
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


def read_integers(cells: Column, rows: RowFilter) -> I64:
    """Read device counters, (N,) int64; -1 where there is none."""
    whole, exact = _whole_numbers(cells)
    if exact.all():
        return whole
    numbers = read_numbers(cells, rows)
    near = (np.abs(numbers) < 2**53) & (numbers == np.floor(numbers))
    return np.where(exact, whole, np.where(near, numbers, -1).astype(np.int64))


def read_flags(cells: Column, rows: RowFilter) -> Mask:
    """Read reset flags, (N,) bool; a row whose flag is neither true nor false is rejected."""
    read = [_BOOLEANS.get(_text(cell).strip().lower()) for cell in cells]
    rows.reject(np.array([flag is None for flag in read], np.bool_), DropReason.PARSE)
    return np.array([bool(flag) for flag in read], np.bool_)


def read_episodes(cells: Column) -> I64:
    """Read episode names as numbers, the same for a name in every batch and process; -1 for none."""
    names, episode = _names(cells)
    numbers = [
        int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") >> 1 if name else -1 for name in names
    ]
    return np.array(numbers, np.int64)[episode]
