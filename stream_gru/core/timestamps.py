"""Event times: text and numbers to nanoseconds since 1970-01-01 UTC, and back.

The text of a time depends on that time alone, not on the batch.  Times lie between 1823 and 2116 (`LIMIT_NS`), so that
the difference of any two fits into 64 bits.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from numbers import Real
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.types import I64, NS_PER_S

_FEW = 16  # up to so many texts, one by one is faster than by columns
_Unit = Literal["s", "ms", "us", "ns"]
UNITS_NS: dict[_Unit, int] = {"s": NS_PER_S, "ms": 1_000_000, "us": 1_000, "ns": 1}
# Largest distance from 1970-01-01, exclusive.
LIMIT_NS = 2**62
# `datetime.fromisoformat` also takes weeks, any separator and fractions of a minute, and more with each Python version.
_ISO = re.compile(
    r"(?P<whole>\d{4}-?\d\d-?\d\d(?:[T ](?:[01]\d|2[0-3]):?[0-5]\d(?P<seconds>:?[0-5]\d)?)?)"
    r"(?:[.,](?P<fraction>\d{1,9}))?(?P<zone>Z|[+-]\d\d(?::?\d\d)?)?",
    re.ASCII,
)


def to_ns(time: datetime | str | float) -> int:
    """Return nanoseconds since the epoch of a datetime, ISO 8601 text or seconds.  Raises ValueError.

    A datetime or text without a time zone means UTC.
    """
    if isinstance(time, str):
        return iso_to_ns(time)
    if isinstance(time, datetime):
        return _in_range(_datetime_to_ns(time))
    if not isinstance(time, Real) or isinstance(time, bool) or not abs(time) < LIMIT_NS // NS_PER_S:
        raise ValueError(f"time: expected a datetime, ISO 8601 text or seconds since 1970, got {time!r}")
    # The decoders' conversion: a number means the same instant live and replayed.
    return int(epoch_to_ns(np.array([time]), "s")[0])


def iso_to_ns(text: str) -> int:
    """Return nanoseconds since the epoch of an ISO 8601 date, with optional time (up to nanoseconds) and zone.

    Raises ValueError.
    """
    found = _ISO.fullmatch(text.strip())
    if found is None or (found["fraction"] and not found["seconds"]):
        raise ValueError(f"time: expected a form like 2024-05-01T12:00:00.5Z, got {text!r}")
    whole = datetime.fromisoformat(found["whole"] + (found["zone"] or ""))
    return _in_range(_datetime_to_ns(whole) + int((found["fraction"] or "").ljust(9, "0")))


def _in_range(time_ns: int) -> int:
    if abs(time_ns) >= LIMIT_NS:
        raise ValueError("time: expected an instant between 1823 and 2116")
    return time_ns


def _datetime_to_ns(time: datetime) -> int:
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * NS_PER_S + since.microseconds * 1_000


def parse_iso(texts: list[str]) -> tuple[I64, NDArray[np.bool_]]:
    """Return nanoseconds, (N,) int64, and which texts are valid, (N,) bool, of ISO 8601 texts; invalid ones are 0.

    Texts of the common form ``YYYY-MM-DDTHH:MM:SS[.fff][Z]`` are parsed together as columns of digits, about a hundred
    times faster than one by one.
    """
    times = _parse_columns(texts) if len(texts) > _FEW else None
    if times is not None:
        return times, np.ones(len(texts), np.bool_)
    out, good = np.zeros(len(texts), np.int64), np.ones(len(texts), np.bool_)
    for index, text in enumerate(texts):
        try:
            out[index] = iso_to_ns(text)
        except (ValueError, OverflowError):
            good[index] = False
    return out, good


def _parse_columns(texts: list[str]) -> I64 | None:
    """Parse texts that all have the common form and the same length; return None for any others."""
    joined = "".join(texts)
    count = len(texts)
    if not count or not joined.isascii() or len(joined) % count:
        return None
    width = len(joined) // count
    if set(map(len, texts)) != {width}:
        return None
    table = np.frombuffer(joined.encode(), np.uint8).reshape(count, width)
    zulu = (table[:, -1] == ord("Z")).all() if width else False
    if zulu:
        table = table[:, :-1]
    elif (table[:, -1] > ord("9")).any() if width else True:
        return None
    width = table.shape[1]
    if width != 19 and not 21 <= width <= 29:
        return None
    return _from_digits(table)


def _from_digits(table: NDArray[np.uint8]) -> I64 | None:
    separators = {4: b"-", 7: b"-", 10: b"T ", 13: b":", 16: b":", 19: b"."}
    places = [place for place in range(table.shape[1]) if place not in separators]
    digits = table[:, places].astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 9)).any():
        return None
    for place, allowed in separators.items():
        if place < table.shape[1] and not all(code in allowed for code in np.unique(table[:, place]).tolist()):
            return None

    def number(first: int, last: int) -> I64:
        return digits[:, first:last] @ 10 ** np.arange(last - first - 1, -1, -1, dtype=np.int64)

    year, month, day = number(0, 4), number(4, 6), number(6, 8)
    hour, minute, second = number(8, 10), number(10, 12), number(12, 14)
    valid = (month >= 1) & (month <= 12) & (day >= 1) & (hour < 24) & (minute < 60) & (second < 60)
    if not (valid & (day <= _days_in(year, np.clip(month, 1, 12)))).all():
        return None
    seconds = (_days(year, month, day) * 24 + hour) * 3600 + minute * 60 + second
    fraction = number(14, len(places)) * 10 ** (9 - (len(places) - 14)) if len(places) > 14 else 0
    if (np.abs(seconds) >= LIMIT_NS // NS_PER_S).any():
        return None
    return seconds * NS_PER_S + fraction


def _days_in(year: I64, month: I64) -> I64:
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    return np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])[month] + ((month == 2) & leap)


def _days(year: I64, month: I64, day: I64) -> I64:
    """Days since 1970-01-01 in the Gregorian calendar.  Source: H. Hinnant, "chrono-compatible date algorithms"."""
    year = year - (month <= 2)
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + np.where(month > 2, -3, 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def epoch_to_ns(values: NDArray[np.float64] | I64, unit: _Unit) -> I64:
    """Return nanoseconds of numbers in ``unit`` (s, ms, us, ns); exact for whole numbers.

    Fractions of seconds and milliseconds are rounded to a microsecond: float64 resolves 0.2 µs for present times.
    """
    factor = UNITS_NS[unit]
    if values.dtype.kind in "iu":
        return values.astype(np.int64) * factor
    whole = np.floor(values)
    step = 1000 if factor > 1000 else 1
    return whole.astype(np.int64) * factor + np.rint((values - whole) * (factor // step)).astype(np.int64) * step


def format_iso(time_ns: I64) -> list[str]:
    """Return ``YYYY-MM-DDTHH:MM:SS[.fff[fff[fff]]]Z`` for each time, with as few digits as needed."""
    out = np.empty(len(time_ns), object)
    left = np.ones(len(time_ns), np.bool_)
    for unit, width_ns in UNITS_NS.items():
        fits = left & (time_ns % width_ns == 0)
        if fits.any():
            out[fits] = np.char.add(np.datetime_as_string(time_ns[fits].view("datetime64[ns]"), unit=unit), "Z")
            left &= ~fits
        if not left.any():
            break
    return out.tolist()
