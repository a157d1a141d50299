"""Fields: named columns of text or numbers become a SampleBatch; shared by all decoders of tables.

Text is read strictly: a number is decimal digits with point and exponent, nothing that Python's ``float`` takes besides
(``1_0``, Arabic digits, blanks).  An empty field, ``nan``, ``na``, ``null`` and ``none`` mean: no value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np

from stream_gru.config.schema import ChannelConfig, InputConfig, TimeUnit
from stream_gru.manifest import Channel
from stream_gru.times import epoch_to_ns, parse_iso
from stream_gru.types import F64, I32, I64, DropReason, Mask, SampleBatch, empty_batch

_PLAIN_NUMBERS = re.compile(r"[0-9+\-.eE\n]*")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_INTEGERS = re.compile(r"(-?\d{1,18}(\n|$))*", re.ASCII)
_MISSING = frozenset({"", "nan", "na", "null", "none"})
_STREAM_ID = re.compile(r"[A-Za-z0-9_.:/ -]{1,128}")
_BOOLEANS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False, "": False}
# Later than this, nanoseconds since 1970 no longer fit 64 bits.
_LAST_S = 9_000_000_000

Column = Sequence[object]
Row = tuple[int, DropReason]


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

    ``column(name)`` gives the values of a field (text, numbers, bool or None for each row), or None where no row has
    it; ``key`` names the stream of records that do not name their own.
    """
    wanted = fields.input
    if not count:
        return empty_batch(len(fields.columns))
    rows = _Rows(count)
    time_ns = _times(column(wanted.time), wanted.time_unit, rows)
    values = np.full((count, len(fields.columns)), np.nan, np.float32)
    with np.errstate(over="ignore"):
        for index, name in enumerate(fields.columns):
            cells = column(name)
            if cells is not None:
                values[:, index] = _numbers(cells, rows)
    streams, stream = _streams(column(wanted.stream) if wanted.stream else None, key, rows)
    labels, label = _labels(column(wanted.label) if wanted.label else None)
    batch = SampleBatch(
        streams=streams,
        stream=stream,
        time_ns=time_ns,
        values=values,
        seq=_integers(column(wanted.seq), rows) if wanted.seq else None,
        label=label,
        labels=labels,
        reset=_flags(column(wanted.reset), rows) if wanted.reset else None,
        sequence=_keys(column(wanted.sequence)) if wanted.sequence else None,
        rejected=rows.rejected,
    )
    if not rows.rejected:
        return batch
    return replace(batch.take(rows.good), rejected=rows.rejected)


def stream_id(text: str) -> str:
    """Make a stream id of a file's name: what an id may not contain becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9_.:/ -]", "_", text)[:128] or "_"


def _times(cells: Column | None, unit: TimeUnit, rows: _Rows) -> I64:
    if cells is None:
        rows.drop(rows.good.copy(), DropReason.MISSING_FIELD)
        return np.zeros(len(rows.good), np.int64)
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "M":
        return cells.astype("datetime64[ns]").astype(np.int64)
    if "" in cells or None in cells:
        rows.drop(np.array([cell is None or cell == "" for cell in cells], np.bool_), DropReason.MISSING_FIELD)
    if unit == "iso":
        texts = _texts(cells)
        times, good = parse_iso(texts)
        rows.drop(~good, DropReason.TIMESTAMP)
        return times
    exact = _exact_integers(cells)
    numbers = _numbers(cells, rows, DropReason.TIMESTAMP) if exact is None else exact
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    usable = np.isfinite(numbers) & (np.abs(numbers) < _LAST_S * factor)
    rows.drop(~usable, DropReason.TIMESTAMP)
    return epoch_to_ns(np.where(usable, numbers, 0), unit)


def _exact_integers(cells: Column) -> I64 | None:
    """Whole numbers without the detour over float64, which would round nanoseconds; None when there are others."""
    if isinstance(cells, np.ndarray):
        return cells.astype(np.int64) if cells.dtype.kind in "iu" else None
    kinds = set(map(type, cells))
    if kinds == {str} and not _INTEGERS.fullmatch("\n".join(cells)):  # type: ignore[arg-type]
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
    if _PLAIN_NUMBERS.fullmatch("\n".join(cells)):
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


def _streams(cells: Column | None, key: str, rows: _Rows) -> tuple[tuple[str, ...], I32]:
    if cells is None:
        return (stream_id(key),), np.zeros(len(rows.good), np.int32)
    index: dict[str, int] = {}
    stream = np.array([index.setdefault(text, len(index)) for text in _texts(cells)], np.int32)
    bad = np.array([not _STREAM_ID.fullmatch(name) for name in index], np.bool_)
    if bad.any():
        rows.drop(bad[stream], DropReason.BAD_STREAM_ID)
    return tuple(index), stream


def _labels(cells: Column | None) -> tuple[tuple[str, ...], I32 | None]:
    """Labels are a truth to compare with, never needed: an absent one is -1 and drops nothing."""
    if cells is None:
        return (), None
    index: dict[str, int] = {}
    codes = [index.setdefault(text, len(index)) if text else -1 for text in _texts(cells)]
    return tuple(index), np.array(codes, np.int32)


def _texts(cells: Column) -> Sequence[str]:
    return cells if set(map(type, cells)) == {str} else [_text(cell) for cell in cells]  # type: ignore[return-value]


def _text(cell: object) -> str:
    """A cell as a name: text as it is, whole numbers without a point, nothing as ``""``."""
    if cell is None:
        return ""
    if isinstance(cell, float | np.floating) and float(cell).is_integer():
        return str(int(cell))
    return str(cell)


def _integers(cells: Column | None, rows: _Rows) -> I64 | None:
    if cells is None:
        return None
    exact = _exact_integers(cells)
    if exact is not None:
        return exact
    numbers = _numbers(cells, rows)
    return np.where(np.isfinite(numbers) & (np.abs(numbers) < 2**53), numbers, -1).astype(np.int64)


def _flags(cells: Column | None, rows: _Rows) -> Mask | None:
    if cells is None:
        return None
    read = [_BOOLEANS.get(_text(cell).strip().lower()) for cell in cells]
    rows.drop(np.array([flag is None for flag in read], np.bool_), DropReason.PARSE)
    return np.array([bool(flag) for flag in read], np.bool_)


def _keys(cells: Column | None) -> I64 | None:
    """A number for each different sequence name, the same in every batch and process."""
    if cells is None:
        return None
    texts = _texts(cells)
    numbers = {
        text: int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little") >> 1 for text in set(texts)
    }
    return np.array([numbers[text] for text in texts], np.int64)
