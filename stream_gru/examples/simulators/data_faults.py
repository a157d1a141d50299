"""Data faults of real recordings: rows missing, repeated or late, and empty values.  Timestamps stay correct."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream_gru.examples.simulators.recording import F64, I64, Recording


@dataclass(frozen=True)
class DataFaultRates:
    """How often each fault occurs; all zero gives a clean recording.

    Gaps are per 3600 rows, the others are shares of rows (`empty`: of values).
    """

    short_gaps: float = 3.0
    long_gaps: float = 0.25
    repeated: float = 0.001
    late: float = 0.001
    empty: float = 0.0005
    short_gap_rows: tuple[int, int] = (1, 4)
    long_gap_rows: tuple[int, int] = (60, 300)
    late_by_rows: tuple[int, int] = (1, 5)


DEFAULT_DATA_FAULTS = DataFaultRates()
NO_DATA_FAULTS = DataFaultRates(short_gaps=0.0, long_gaps=0.0, repeated=0.0, late=0.0, empty=0.0)


def apply_data_faults(clean: Recording, rates: DataFaultRates, rng: np.random.Generator) -> Recording:
    """Return the rows of a clean recording with faults, in the order of writing; `clean` is not changed.

    Without repeated times and sorted by time they are the clean rows, except for gaps and empty values.
    """
    kept = np.flatnonzero(~_missing(len(clean), rates, rng))
    emptied = replace(clean, values=_with_empty(clean.values, rates.empty, rng))
    return emptied.take(_written_order(kept, rates, rng))


def _missing(n: int, rates: DataFaultRates, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return (n,) True for rows in a gap."""
    missing = np.zeros(n, dtype=np.bool_)
    for per_hour, (least, most) in (
        (rates.short_gaps, rates.short_gap_rows),
        (rates.long_gaps, rates.long_gap_rows),
    ):
        count = int(rng.poisson(per_hour * n / 3600.0))
        firsts, lengths = rng.integers(0, max(n, 1), count), rng.integers(least, most + 1, count)
        for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
            missing[first : first + length] = True
    return missing


def _with_empty(values: F64, share: float, rng: np.random.Generator) -> F64:
    """Return a copy of (N, C) values in which this share is NaN."""
    return np.where(rng.random(values.shape) < share, np.nan, values)


def _written_order(kept: I64, rates: DataFaultRates, rng: np.random.Generator) -> I64:
    """Return row numbers in the order of writing: late rows moved down, repeated rows directly twice."""
    n = len(kept)
    least, most = rates.late_by_rows
    # Half a row more than a whole number of rows, so that a late row comes after the row at that distance.
    delay = np.where(rng.random(n) < rates.late, rng.integers(least, most + 1, n) + 0.5, 0.0)
    ordered = kept[np.argsort(np.arange(n) + delay, kind="stable")]
    return np.repeat(ordered, np.where(rng.random(n) < rates.repeated, 2, 1))
