"""Data faults change which rows are written, never their values and times."""

import numpy as np
import pytest

from stream_gru.examples.simulators.pump import pump_parameters, simulate_pump
from stream_gru.examples.simulators.recording import NS_PER_S, Recording
from stream_gru.examples.simulators.write import NO_DATA_FAULTS, DataFaultRates, apply_data_faults

MANY = DataFaultRates(short_gaps=20.0, long_gaps=2.0, repeated=0.01, late=0.01, empty=0.01)


@pytest.fixture(scope="module")
def clean() -> Recording:
    """Two hours of one pump without data faults."""
    return simulate_pump(pump_parameters(1, seed=3)[0], 2.0, np.random.default_rng(0), 0)


def with_data_faults(clean: Recording, rates: DataFaultRates = MANY, seed: int = 1) -> Recording:
    """Return the recording with seeded data faults."""
    return apply_data_faults(clean, rates, np.random.default_rng(seed))


def test_without_faults_the_recording_is_unchanged(clean: Recording) -> None:
    """With all rates zero the rows are unchanged."""
    written = with_data_faults(clean, NO_DATA_FAULTS)
    assert np.array_equal(written.time_ns, clean.time_ns)
    assert np.array_equal(written.values, clean.values)


def test_dropping_repeats_and_sorting_restores_the_clean_rows(clean: Recording) -> None:
    """Without repeats and in time order, a written row is the clean row of its time, or empty."""
    written = with_data_faults(clean)
    times, first = np.unique(written.time_ns, return_index=True)
    rows = np.searchsorted(clean.time_ns, times)
    assert np.array_equal(clean.time_ns[rows], times)
    values = written.values[first]
    assert np.all(np.isnan(values) | (values == clean.values[rows]))
    assert written.labels is not None
    assert clean.labels is not None
    assert np.array_equal(written.labels[first], clean.labels[rows])


def test_gaps_are_short_or_minutes_long(clean: Recording) -> None:
    """Rows are missing for 1-4 s many times and for a minute or more a few times."""
    times = np.unique(with_data_faults(clean).time_ns)
    missing = np.diff(times) // NS_PER_S - 1
    assert np.sum((missing >= 1) & (missing <= 4)) >= 15
    assert np.sum(missing >= 60) >= 1


def test_repeated_rows_are_exact(clean: Recording) -> None:
    """A repeated row directly follows its original and equals it in every column."""
    written = with_data_faults(clean)
    again = np.flatnonzero(np.diff(written.time_ns) == 0) + 1
    assert 30 <= len(again) <= 120
    assert np.array_equal(written.values[again], written.values[again - 1], equal_nan=True)


def test_late_rows_come_a_few_rows_after_their_time(clean: Recording) -> None:
    """A late row is written after 1 to 5 newer rows; the others keep their order."""
    written = with_data_faults(clean, DataFaultRates(0.0, 0.0, 0.0, 0.01, 0.0))
    newest = np.maximum.accumulate(written.time_ns)
    behind_s = (newest - written.time_ns) // NS_PER_S
    assert 30 <= np.sum(behind_s > 0) <= 120
    assert behind_s.max() <= 5
    assert np.all(np.diff(written.time_ns[behind_s == 0]) > 0)


def test_a_row_late_by_one_is_late(clean: Recording) -> None:
    """A row that is late by one row is swapped with the next one, so that it is out of order."""
    written = with_data_faults(clean, DataFaultRates(0.0, 0.0, 0.0, 0.01, 0.0, late_by_rows=(1, 1)))
    assert 30 <= np.sum(np.diff(written.time_ns) < 0) <= 120


def test_a_few_values_are_empty(clean: Recording) -> None:
    """About the configured share of the values is NaN, and none of the clean recording."""
    assert np.mean(np.isnan(with_data_faults(clean).values)) == pytest.approx(MANY.empty, rel=0.3)
    assert not np.any(np.isnan(clean.values))


def test_data_faults_are_seeded(clean: Recording) -> None:
    """The same seed gives the same faults and another seed gives others."""
    assert np.array_equal(with_data_faults(clean, seed=4).time_ns, with_data_faults(clean, seed=4).time_ns)
    assert not np.array_equal(with_data_faults(clean, seed=4).time_ns, with_data_faults(clean, seed=5).time_ns)
