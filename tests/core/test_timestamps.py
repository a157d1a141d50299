from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.core.timestamps import LIMIT_NS, epoch_to_ns, format_iso, iso_to_ns, parse_iso, to_ns

instants = st.one_of(
    st.integers(-LIMIT_NS + 1, LIMIT_NS - 1),
    st.integers(-4 * 10**9, 4 * 10**9).map(lambda s: s * 10**9),
    st.integers(-4 * 10**12, 4 * 10**12).map(lambda ms: ms * 10**6),
)
common_forms = st.builds(
    "{:04d}-{:02d}-{:02d}{}{:02d}:{:02d}:{:02d}{}{}".format,
    st.integers(0, 9999),
    st.integers(0, 13),
    st.integers(0, 32),
    st.sampled_from(["T", " ", "t", "-"]),
    st.integers(0, 25),
    st.integers(0, 61),
    st.integers(0, 61),
    st.sampled_from(["", ".", ".5", ".123", ".123456", ".123456789", ".1234567891", ",5"]),
    st.sampled_from(["", "Z", "z", "+01:00", "-0530", "+24:00", "ZZ"]),
)


def slow(text: str) -> tuple[int, bool]:
    """Return the result of the parser of single texts."""
    try:
        return iso_to_ns(text), True
    except ValueError:
        return 0, False


@given(st.lists(instants, max_size=20))
def test_formatted_times_are_parsed_exactly(times: list[int]) -> None:
    """Every instant in range, to the nanosecond."""
    texts = format_iso(np.array(times, np.int64))
    found, good = parse_iso(texts)
    assert found.tolist() == times
    assert good.all()
    assert [iso_to_ns(text) for text in texts] == times


@given(st.lists(instants, min_size=1, max_size=20))
def test_an_instant_has_the_same_text_in_every_batch(times: list[int]) -> None:
    """It does not depend on other rows, and has no more digits than needed."""
    together = format_iso(np.array(times, np.int64))
    assert together == [format_iso(np.array([time], np.int64))[0] for time in times]
    for time, text in zip(times, together, strict=True):
        digits = len(text.partition(".")[2].removesuffix("Z"))
        assert digits == next(n for n in (0, 3, 6, 9) if time % 10 ** (9 - n) == 0)


@given(st.lists(st.one_of(common_forms, st.text(max_size=30)), max_size=8))
def test_parsing_together_equals_parsing_one_by_one(texts: list[str]) -> None:
    """On every text, valid or not."""
    times, good = parse_iso(texts)
    assert list(zip(times.tolist(), good.tolist(), strict=True)) == [slow(text) for text in texts]


@given(common_forms, st.integers(1, 5))
def test_the_parser_of_columns_agrees_too(text: str, count: int) -> None:
    """Where all texts have one form."""
    times, good = parse_iso([text] * count)
    assert set(zip(times.tolist(), good.tolist(), strict=True)) == {slow(text)}


@given(st.datetimes(datetime(1850, 1, 1), datetime(2100, 1, 1)), st.integers(-1439, 1439))
def test_instants_equal_those_of_the_standard_library(naive: datetime, offset: int) -> None:
    """For a text with an offset and for a datetime."""
    time = naive.replace(tzinfo=timezone(timedelta(minutes=offset)))
    expected = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    assert to_ns(time.isoformat()) == expected
    assert to_ns(time) == expected


@given(st.floats(-4e9, 4e9))
def test_seconds_mean_the_same_live_and_replayed(seconds: float) -> None:
    """A number given to `Pipeline.push` is the instant that a decoder returns for it."""
    assert to_ns(seconds) == int(epoch_to_ns(np.array([seconds]), "s")[0])


@given(st.integers(-(10**9), 4 * 10**9), st.sampled_from(["s", "ms", "us", "ns"]))
def test_whole_numbers_of_any_unit_are_exact(number: int, unit: str) -> None:
    """As integers and as floats."""
    expected = number * {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    assert int(epoch_to_ns(np.array([number]), unit)[0]) == expected  # type: ignore[arg-type]
    assert int(epoch_to_ns(np.array([float(number)]), unit)[0]) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "time",
    [
        True, float("nan"), float("inf"), 10**30, -1e30, "", "soon", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z",
        "2024-05-01:10", "2024-W18-3", "2024-05-01T12:00.5", "2024-05-01T24:00:00", "2024-05-01T12:00:00.",
        "2024-05-01T12:00:00+01:00:00.5", datetime(1, 1, 1), datetime(9999, 1, 1, tzinfo=UTC),
    ],
)  # fmt: skip
def test_a_time_out_of_range_is_a_value_error(time: datetime | str | float) -> None:
    """So is an invalid text."""
    with pytest.raises(ValueError, match=r"time|isoformat|day|month|year"):
        to_ns(time)


def test_numbers_of_numpy_are_seconds() -> None:
    """A number from an array is treated as Python's own."""
    for number in (np.int64(5), np.float32(5), np.float64(5), 5):
        assert to_ns(number) == 5 * 10**9  # type: ignore[arg-type]


def test_an_empty_column_is_an_empty_column() -> None:
    """No texts, no times."""
    assert parse_iso([])[0].tolist() == []
    assert format_iso(np.zeros(0, np.int64)) == []
