"""The simulated pumps follow pump hydraulics, develop faults slowly, and need a model with memory."""

from itertools import pairwise

import numpy as np
import pytest

from stream_gru.examples.simulators.pump import (
    CHANNELS,
    FAULT_THRESHOLD,
    MODES,
    PumpParameters,
    PumpTruth,
    Severity,
    demand,
    fault_severity,
    pump_parameters,
    pump_truth,
    simulate_pump,
)
from stream_gru.examples.simulators.recording import F64, NS_PER_S, Recording
from tests.support.batches import START_NS


def simulated(parameters: PumpParameters, hours: float = 1.0, seed: int = 0) -> Recording:
    """Return a seeded recording of this pump."""
    return simulate_pump(parameters, hours, np.random.default_rng(seed), START_NS)


@pytest.fixture(scope="module")
def parameters() -> PumpParameters:
    """The parameters of one pump."""
    return pump_parameters(1, seed=3)[0]


@pytest.fixture(scope="module")
def pump_recording(parameters: PumpParameters) -> Recording:
    """Two hours of the pump, with its sensors."""
    return simulated(parameters, hours=2.0)


@pytest.fixture(scope="module")
def truth(parameters: PumpParameters) -> PumpTruth:
    """Two hours of the pump, without sensors."""
    return pump_truth(parameters, 7200, np.random.default_rng(0))


def severity_of_fault(severity: Severity) -> F64:
    """Return (N,) severity of the active fault."""
    return severity.cavitation + severity.bearing_wear


def test_one_row_per_second_with_four_channels(pump_recording: Recording) -> None:
    """A recording has one row per second, four finite channels that are never negative, and a mode."""
    assert pump_recording.channels == CHANNELS
    assert pump_recording.values.shape == (7200, 4)
    assert pump_recording.time_ns[0] == START_NS
    assert set(np.diff(pump_recording.time_ns).tolist()) == {NS_PER_S}
    assert np.all(np.isfinite(pump_recording.values))
    assert np.all(pump_recording.values >= 0.0)
    assert pump_recording.labels is not None
    assert set(pump_recording.labels.tolist()) == set(MODES)


def test_a_seed_gives_the_same_recording(parameters: PumpParameters) -> None:
    """The same seed gives the same values and another seed gives others."""
    first, again, other = (simulated(parameters, 0.1, seed).values for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_each_pump_has_its_own_parameters() -> None:
    """Pumps differ from each other, and pump k does not depend on their number."""
    six = pump_parameters(6, seed=3)
    assert pump_parameters(2, seed=3) == six[:2]
    assert [pump.stream_id for pump in six] == [f"pump-{k}" for k in range(1, 7)]
    assert len({pump.rated_flow for pump in six}) == 6


def test_an_hour_has_all_modes_in_their_shares() -> None:
    """Nearly every hour has all four modes: on average idle 10-20 %, normal 50-62 %, each fault 10-18 %."""
    hours = [simulated(pump, 1.0, seed=k).labels for k, pump in enumerate(pump_parameters(20, seed=5))]
    shares = np.array([[np.mean(labels == mode) for mode in MODES] for labels in hours])
    assert np.mean(np.all(shares > 0.0, axis=1)) >= 0.95
    low, high = np.array([0.10, 0.50, 0.10, 0.10]), np.array([0.20, 0.62, 0.18, 0.18])
    assert np.all((shares.mean(axis=0) > low) & (shares.mean(axis=0) < high))


def test_the_pump_curve_scales_with_the_affinity_laws(parameters: PumpParameters, truth: PumpTruth) -> None:
    """At every speed a healthy pump's pressure is n^2 p0 - a q^2, unless the check valve holds more."""
    a = parameters.curve_drop * parameters.shutoff_pressure / parameters.rated_flow**2
    curve = parameters.shutoff_pressure * truth.speed**2 - a * truth.flow**2
    pumping = (truth.severity.cavitation == 0.0) & (truth.pressure > parameters.static_pressure)
    assert np.ptp(truth.speed[pumping]) > 0.2
    assert np.allclose(truth.pressure[pumping], curve[pumping])


def test_current_follows_hydraulic_power(pump_recording: Recording) -> None:
    """While the pump runs, the current is correlated with flow times pressure."""
    works = pump_recording.channel("flow") > 50.0
    power = pump_recording.channel("flow") * pump_recording.channel("pressure")
    assert np.corrcoef(power[works], pump_recording.channel("current")[works])[0, 1] > 0.85


def test_an_idle_pump_moves_no_water(pump_recording: Recording, parameters: PumpParameters) -> None:
    """Idle means almost no flow, current and vibration, and the static pressure at the check valve."""
    idle = pump_recording.values[pump_recording.labels == "idle"].mean(axis=0)
    assert idle[0] < 0.01 * parameters.rated_flow
    assert idle[1] == pytest.approx(parameters.static_pressure, rel=0.02)
    assert idle[2] < 0.15
    assert idle[3] < 0.2


def test_the_motor_spins_up_through_a_lag(truth: PumpTruth) -> None:
    """From standstill to 90 % speed takes at least 8 s, rising in each of them."""
    starts = np.flatnonzero((truth.speed[:-1] < 0.05) & (np.diff(truth.speed) > 0.05))
    assert len(starts) > 5
    for start in starts.tolist():
        assert np.all(np.diff(truth.speed[start : start + 8]) > 0.0)
        assert truth.speed[start + 8] < 0.9


def test_faults_begin_slowly() -> None:
    """A fault grows for 30 s or more before it is labelled, by at most 1.2 % per second."""
    severity = fault_severity(4 * 3600, np.random.default_rng(0))
    for fault in (severity.cavitation, severity.bearing_wear):
        begins = np.flatnonzero((fault[:-1] == 0.0) & (fault[1:] > 0.0))
        named = np.flatnonzero((fault[:-1] <= FAULT_THRESHOLD) & (fault[1:] > FAULT_THRESHOLD))
        assert len(named) >= 4
        assert np.all(named - begins[: len(named)] >= 30)
        assert np.diff(fault).max() < 0.012


def test_faults_alternate() -> None:
    """The two faults are never active together, and neither is active between episodes."""
    severity = fault_severity(4 * 3600, np.random.default_rng(0))
    assert np.all(severity.cavitation * severity.bearing_wear == 0.0)
    ends = np.flatnonzero((severity_of_fault(severity)[:-1] > 0.0) & (severity_of_fault(severity)[1:] == 0.0))
    assert len(ends) >= 8
    assert all(later - earlier > 300 for earlier, later in pairwise(ends.tolist()))


def test_the_label_switches_at_the_threshold(truth: PumpTruth) -> None:
    """A running pump has a fault label exactly while the severity exceeds the threshold."""
    labels, runs = truth.labels(), truth.speed > 0.5
    assert np.array_equal(labels[runs] == "cavitation", truth.severity.cavitation[runs] > FAULT_THRESHOLD)
    assert np.array_equal(labels[runs] == "bearing_wear", truth.severity.bearing_wear[runs] > FAULT_THRESHOLD)


def test_cavitation_makes_signals_fluctuate(truth: PumpTruth) -> None:
    """Cavitation makes pressure and vibration fluctuate from second to second."""
    steady = truth.speed > 0.99
    cavitates = steady & (truth.severity.cavitation > 0.7)
    healthy = steady & (severity_of_fault(truth.severity) == 0.0)
    for signal in (truth.pressure, truth.vibration):
        change = np.abs(np.diff(signal, prepend=signal[:1]))
        assert change[cavitates].mean() > 1.5 * change[healthy].mean()
    assert truth.vibration[cavitates].mean() > 1.2 * truth.vibration[healthy].mean()


def test_a_worn_bearing_beats(parameters: PumpParameters, truth: PumpTruth) -> None:
    """Bearing wear raises vibration with a slow beat near the bearing's own period, and current a little."""
    worst = np.flatnonzero((truth.speed > 0.99) & (truth.severity.bearing_wear > 0.75))
    stretch = max(np.split(worst, np.flatnonzero(np.diff(worst) > 1) + 1), key=len)
    vibration = truth.vibration[stretch] - truth.vibration[stretch].mean()
    strongest = int(np.argmax(np.abs(np.fft.rfft(vibration * np.hanning(len(vibration))))))
    assert len(vibration) / strongest == pytest.approx(parameters.bearing_period_s, rel=0.3)


def test_one_sample_does_not_separate_the_modes(pump_recording: Recording) -> None:
    """No threshold on the vibration of one row separates healthy from faulty rows of a running pump."""
    assert pump_recording.labels is not None
    runs = pump_recording.labels != "idle"
    vibration, is_faulty = pump_recording.channel("vibration")[runs], pump_recording.labels[runs] != "normal"
    thresholds = np.quantile(vibration, np.linspace(0.02, 0.98, 49))
    assert max(np.mean((vibration > threshold) == is_faulty) for threshold in thresholds) < 0.92


def test_past_samples_predict_flow_and_pressure() -> None:
    """Ten steps ahead, a linear model of the last 30 rows beats persistence by 20 % on an unknown pump."""
    *known, unseen = [simulated(pump, 1.0, seed=k).values for k, pump in enumerate(pump_parameters(5, seed=3))]
    for channel in (0, 1):
        pasts, changes = zip(*(lagged(values, channel) for values in known), strict=True)
        weights = np.linalg.lstsq(np.concatenate(pasts), np.concatenate(changes), rcond=None)[0]
        past, change = lagged(unseen, channel)
        assert np.abs(past @ weights - change).mean() < 0.8 * np.abs(change).mean()


def lagged(values: F64, channel: int, lags: int = 30, horizon: int = 10) -> tuple[F64, F64]:
    """Return (N, lags * C) past rows less the present one, and (N,) changes of a channel over the horizon."""
    windows = np.lib.stride_tricks.sliding_window_view(values[:-horizon], lags, axis=0)
    past = (windows - windows[:, :, -1:]).reshape(len(windows), -1)
    return past, values[lags - 1 + horizon :, channel] - values[lags - 1 : -horizon, channel]


def test_demand_moves_in_cycles(parameters: PumpParameters) -> None:
    """Demand has a fast cycle: it is more similar after one batch period than after half of it."""
    wanted = demand(parameters, 3600, np.random.default_rng(0))
    half, whole = round(parameters.batch_period_s / 2), round(parameters.batch_period_s)
    apart = {lag: np.mean((wanted[lag:] - wanted[:-lag]) ** 2) for lag in (half, whole)}
    assert apart[whole] < 0.6 * apart[half]
