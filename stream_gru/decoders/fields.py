"""Fields: named columns of text or numbers become a SampleBatch; shared by all decoders of tables.

Text is read strictly: a number is decimal digits with point and exponent, nothing that Python's ``float`` takes besides
(``1_0``, Arabic digits, blanks).  An empty field, ``nan``, ``na``, ``null`` and ``none`` mean: no value.

What a row becomes never depends on the rows beside it: a field that no row of a message has is read as missing in each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from stream_gru.config.kinds import TimeUnit
from stream_gru.config.schema import ChannelConfig, InputConfig
from stream_gru.manifest import Channel
from stream_gru.times import LIMIT_NS, epoch_to_ns, parse_iso
from stream_gru.types import F64, I32, I64, STREAM_ID, DropReason, Mask, SampleBatch, empty_batch

# Cells joined by commas, which no number has.
_PLAIN_NUMBERS = re.compile(r"[0-9+\-.eE,]*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
_INTEGERS = re.compile(r"-?\d{1,19}(,-?\d{1,19})*", re.ASCII)
_MISSING = frozenset({"", "nan", "-nan", "na", "null", "none"})
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}

Column = Sequence[object]


class Mistyped(list[bool]):
    """A column of a type that no field has, such as lists or durations; each cell says whether its value is missing."""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a record means what."""

    input: InputConfig
    columns: tuple[str, ...]

    @staticmethod
    def of(input_config: InputConfig, channels: Sequence[Channel] | Sequence[ChannelConfig]) -> Fields:
        """Fields of a bundle's or a configuration's channels; a channel's column is called as itself by default."""
        return Fields(input_config, tuple(channel.column or channel.name for channel in channels))

    @property
    def required(self) -> tuple[str, ...]:
        """Fields without which no record can be read."""
        return tuple(name for name in (self.input.time, self.input.stream, *self.columns) if name)

    @property
    def named(self) -> tuple[str, ...]:
        """All fields that are read where they are present."""
        wanted = self.input
        optional = (wanted.label, wanted.reset, wanted.sequence, wanted.seq)
        return self.required + tuple(name for name in optional if name)


class _Rows:
    """The rows of one table that are still good; each bad one is dropped once, for the first reason found."""

    def __init__(self, count: int) -> None:
        self.good: Mask = np.ones(count, np.bool_)
        self.rejected: dict[DropReason, int] = {}

    def drop(self, bad: Mask, reason: DropReason) -> None:
        new = bad & self.good
        if new.any():
            self.rejected[reason] = self.rejected.get(reason, 0) + int(new.sum())
            self.good &= ~bad


def assemble(fields: Fields, count: int, column: Callable[[str], Column | None], key: str) -> SampleBatch:
    """Build a batch of ``count`` rows.

    ``column(name)`` gives the values of a field (text, numbers, bool or None for each row; instants for the time; or
    `Mistyped`), or None where no row has it; ``key`` names the stream of records that do not name their own.
    """
    wanted = fields.input
    if not count:
        return empty_batch(len(fields.columns))

    rows = _Rows(count)

    def cells(name: str, instants: bool = False) -> Column:
        found = column(name)
        if found is None:
            return [None] * count
        if not instants and isinstance(found, np.ndarray) and found.dtype.kind == "M":
            found = Mistyped(np.isnat(found).tolist())
        if not isinstance(found, Mistyped):
            return found
        rows.drop(~np.array(found, np.bool_), DropReason.TYPE)
        return [None] * count

    time_ns = _times(cells(wanted.time, instants=True), wanted.time_unit, rows)
    values = np.full((count, len(fields.columns)), np.nan, np.float32)
    with np.errstate(over="ignore"):
        for index, name in enumerate(fields.columns):
            values[:, index] = _numbers(cells(name), rows)
    if wanted.stream:
        streams, stream = _streams(cells(wanted.stream), rows)
    else:
        streams, stream = (stream_id(key),), np.zeros(count, np.int32)
    labels, label = _labels(cells(wanted.label)) if wanted.label else ((), None)
    batch = SampleBatch(
        streams=streams,
        stream=stream,
        time_ns=time_ns,
        values=values,
        seq=_integers(cells(wanted.seq), rows) if wanted.seq else None,
        label=label,
        labels=labels,
        reset=_flags(cells(wanted.reset), rows) if wanted.reset else None,
        sequence=_keys(cells(wanted.sequence)) if wanted.sequence else None,
        rejected=rows.rejected,
    )
    if not rows.rejected:
        return batch
    return replace(batch.take(rows.good), rejected=rows.rejected)


def stream_id(text: str) -> str:
    """Make a stream id of a file's name: what an id may not contain becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9_.:/ -]", "_", text)[:128] or "_"


def _times(cells: Column, unit: TimeUnit, rows: _Rows) -> I64:
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "M":
        return _instants(cells, rows)
    rows.drop(np.array([cell is None or cell == "" for cell in cells], np.bool_), DropReason.MISSING_FIELD)
    if unit == "iso":
        texts = [cell if isinstance(cell, str) else "" for cell in cells]
        times, good = parse_iso(texts)
        rows.drop(~good, DropReason.TIMESTAMP)
        return times
    limit = LIMIT_NS // {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    whole, exact = _whole_numbers(cells)
    numbers = whole if exact.all() else _numbers(cells, rows, DropReason.TIMESTAMP)
    usable = np.where(exact, (whole > -limit) & (whole < limit), (numbers > -limit) & (numbers < limit))
    rows.drop(~usable, DropReason.TIMESTAMP)
    times = epoch_to_ns(np.where(usable & exact, whole, 0), unit)
    if not exact.all():
        times += epoch_to_ns(np.where(usable & ~exact, numbers, 0.0), unit)
    return times


def _instants(cells: np.ndarray[tuple[int, ...], np.dtype[np.datetime64]], rows: _Rows) -> I64:
    """Read an Arrow column of instants, of any unit."""
    rows.drop(np.isnat(cells), DropReason.MISSING_FIELD)
    if np.datetime_data(cells.dtype)[0] not in ("s", "ms", "us", "ns"):
        cells = cells.astype("datetime64[s]")
    unit: Any = np.datetime_data(cells.dtype)[0]
    numbers = cells.astype(np.int64)
    limit = LIMIT_NS // {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    usable = (numbers > -limit) & (numbers < limit)
    rows.drop(~usable, DropReason.TIMESTAMP)
    return epoch_to_ns(np.where(usable, numbers, 0), unit)


def _whole_numbers(cells: Column) -> tuple[I64, Mask]:
    """Whole numbers without the detour over float64, which would round nanoseconds; (numbers, which rows are such)."""
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
    """The common case at once; None when any cell is something else."""
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


def _numbers(cells: Column, rows: _Rows, reason: DropReason = DropReason.PARSE) -> F64:
    """Read a column of numbers; NaN where there is none.  Text that is no number drops its row."""
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


def _numbers_of_text(cells: Sequence[str], rows: _Rows, reason: DropReason) -> F64:
    if _PLAIN_NUMBERS.fullmatch(",".join(cells)):
        try:
            return np.array([float(cell) if cell else math.nan for cell in cells])
        except ValueError:
            pass
    return _numbers_one_by_one(cells, rows, reason)


def _numbers_one_by_one(cells: Column, rows: _Rows, reason: DropReason) -> F64:
    out = np.full(len(cells), np.nan)
    unreadable, wrong = np.zeros(len(cells), np.bool_), np.zeros(len(cells), np.bool_)
    for index, cell in enumerate(cells):
        if isinstance(cell, str):
            text = cell.strip(" \t")
            if _NUMBER.fullmatch(text):
                out[index] = float(text)
            elif text.lower() not in _MISSING:
                unreadable[index] = True
        elif isinstance(cell, int | float | np.number) and not isinstance(cell, bool):
            out[index] = _as_float(cell)
        elif cell is not None:
            wrong[index] = True
    rows.drop(unreadable, reason)
    rows.drop(wrong, DropReason.TYPE)
    return out


def _as_float(number: float | np.number[Any]) -> float:
    """The number as float64; an integer too large for that is infinite."""
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _streams(cells: Column, rows: _Rows) -> tuple[tuple[str, ...], I32]:
    index: dict[str, int] = {}
    stream = np.array([index.setdefault(text, len(index)) for text in _texts(cells)], np.int32)
    bad = np.array([not STREAM_ID.fullmatch(name) for name in index], np.bool_)
    if bad.any():
        rows.drop(stream == index.get("", -1), DropReason.MISSING_FIELD)
        rows.drop(bad[stream], DropReason.BAD_STREAM_ID)
    return tuple(index), stream


def _labels(cells: Column) -> tuple[tuple[str, ...], I32]:
    """Labels are a truth to compare with, never needed: an absent one is -1 and drops nothing."""
    index: dict[str, int] = {}
    codes = [index.setdefault(text, len(index)) if text else -1 for text in _texts(cells)]
    return tuple(index), np.array(codes, np.int32)


def _texts(cells: Column) -> Sequence[str]:
    return cells if set(map(type, cells)) == {str} else [_text(cell) for cell in cells]  # type: ignore[return-value]


def _text(cell: object) -> str:
    """A cell as a name: text as it is, whole numbers without a point, true and false as in JSON, nothing as ``""``."""
    if cell is None or cell != cell:  # NaN, Arrow's missing float
        return ""
    if isinstance(cell, bool | np.bool_):
        return str(cell).lower()
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


def _integers(cells: Column, rows: _Rows) -> I64:
    """Read device counters; -1 where there is none."""
    whole, exact = _whole_numbers(cells)
    if exact.all():
        return whole
    numbers = _numbers(cells, rows)
    near = (np.abs(numbers) < 2**53) & (numbers == np.floor(numbers))
    return np.where(exact, whole, np.where(near, numbers, -1).astype(np.int64))


def _flags(cells: Column, rows: _Rows) -> Mask:
    read = [_BOOLEANS.get(_text(cell).strip().lower()) for cell in cells]
    rows.drop(np.array([flag is None for flag in read], np.bool_), DropReason.PARSE)
    return np.array([bool(flag) for flag in read], np.bool_)


def _keys(cells: Column) -> I64:
    """A number for each different sequence name, the same in every batch and process; -1 for none."""
    texts = _texts(cells)
    numbers = {
        text: int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1 for text in set(texts)
    }
    numbers[""] = -1
    return np.array([numbers[text] for text in texts], np.int64)
