"""The simulated pumps obey the textbook, wear slowly, and are worth a model with memory."""

from itertools import pairwise

import numpy as np
import pytest

from stream_gru.examples.simulators.duty_cycle import demand
from stream_gru.examples.simulators.machine_faults import FAULT_THRESHOLD, Severity, fault_severity
from stream_gru.examples.simulators.pump import (
    CHANNELS,
    MODES,
    PumpCharacter,
    PumpTruth,
    pump_characters,
    pump_truth,
    simulate_pump,
)
from stream_gru.examples.simulators.recording import F64, NS_PER_S, Recording
from tests.support.batches import START_NS


def simulated(character: PumpCharacter, hours: float = 1.0, seed: int = 0) -> Recording:
    """Return a seeded recording of this pump."""
    return simulate_pump(character, hours, np.random.default_rng(seed), START_NS)


@pytest.fixture(scope="module")
def character() -> PumpCharacter:
    """One pump."""
    return pump_characters(1, seed=3)[0]


@pytest.fixture(scope="module")
def recording(character: PumpCharacter) -> Recording:
    """Two hours of it, through its sensors."""
    return simulated(character, hours=2.0)


@pytest.fixture(scope="module")
def truth(character: PumpCharacter) -> PumpTruth:
    """Two hours of it, without sensors."""
    return pump_truth(character, 7200, np.random.default_rng(0))


def faulty(severity: Severity) -> F64:
    """Return (N,) severity of whichever fault acts."""
    return severity.cavitation + severity.bearing_wear


def test_one_row_a_second_with_four_channels(recording: Recording) -> None:
    """A recording has one row a second, four finite channels that are never negative, and a mode."""
    assert recording.channels == CHANNELS
    assert recording.values.shape == (7200, 4)
    assert recording.time_ns[0] == START_NS
    assert set(np.diff(recording.time_ns).tolist()) == {NS_PER_S}
    assert np.all(np.isfinite(recording.values))
    assert np.all(recording.values >= 0.0)
    assert recording.labels is not None
    assert set(recording.labels.tolist()) == set(MODES)


def test_a_seed_gives_the_same_recording(character: PumpCharacter) -> None:
    """The same seed gives the same values and another seed gives others."""
    first, again, other = (simulated(character, 0.1, seed).values for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_each_pump_has_its_own_character() -> None:
    """Pumps differ from each other, and pump k is the same however many are asked for."""
    six = pump_characters(6, seed=3)
    assert pump_characters(2, seed=3) == six[:2]
    assert [pump.stream_id for pump in six] == [f"pump-{k}" for k in range(1, 7)]
    assert len({pump.rated_flow for pump in six}) == 6


def test_an_hour_shows_all_modes_in_their_shares() -> None:
    """Nearly every hour has all four modes: on average idle 10-20 %, normal 50-62 %, each fault 10-18 %."""
    hours = [simulated(pump, 1.0, seed=k).labels for k, pump in enumerate(pump_characters(20, seed=5))]
    shares = np.array([[np.mean(labels == mode) for mode in MODES] for labels in hours])
    assert np.mean(np.all(shares > 0.0, axis=1)) >= 0.95
    low, high = np.array([0.10, 0.50, 0.10, 0.10]), np.array([0.20, 0.62, 0.18, 0.18])
    assert np.all((shares.mean(axis=0) > low) & (shares.mean(axis=0) < high))


def test_the_pump_curve_scales_with_the_affinity_laws(character: PumpCharacter, truth: PumpTruth) -> None:
    """At every speed a healthy pump's pressure is n^2 p0 - a q^2, unless the check valve holds more."""
    a = character.curve_drop * character.shutoff_pressure / character.rated_flow**2
    curve = character.shutoff_pressure * truth.speed**2 - a * truth.flow**2
    pumping = (truth.severity.cavitation == 0.0) & (truth.pressure > character.static_pressure)
    assert np.ptp(truth.speed[pumping]) > 0.2
    assert np.allclose(truth.pressure[pumping], curve[pumping])


def test_current_follows_hydraulic_power(recording: Recording) -> None:
    """While the pump works, the current follows flow times pressure."""
    works = recording.channel("flow") > 50.0
    power = recording.channel("flow") * recording.channel("pressure")
    assert np.corrcoef(power[works], recording.channel("current")[works])[0, 1] > 0.85


def test_an_idle_pump_moves_no_water(recording: Recording, character: PumpCharacter) -> None:
    """Idle means next to no flow, current and vibration, and the static pressure behind the check valve."""
    idle = recording.values[recording.labels == "idle"].mean(axis=0)
    assert idle[0] < 0.01 * character.rated_flow
    assert idle[1] == pytest.approx(character.static_pressure, rel=0.02)
    assert idle[2] < 0.15
    assert idle[3] < 0.2


def test_the_motor_spins_up_through_a_lag(truth: PumpTruth) -> None:
    """Speed never jumps: from standstill to 90 % takes at least 8 s, and rises at each of them."""
    starts = np.flatnonzero((truth.speed[:-1] < 0.05) & (np.diff(truth.speed) > 0.05))
    assert len(starts) > 5
    for start in starts.tolist():
        assert np.all(np.diff(truth.speed[start : start + 8]) > 0.0)
        assert truth.speed[start + 8] < 0.9


def test_faults_begin_slowly() -> None:
    """A fault grows for half a minute or more before it is named, by 1.2 % a second at most."""
    severity = fault_severity(4 * 3600, np.random.default_rng(0))
    for fault in (severity.cavitation, severity.bearing_wear):
        begins = np.flatnonzero((fault[:-1] == 0.0) & (fault[1:] > 0.0))
        named = np.flatnonzero((fault[:-1] <= FAULT_THRESHOLD) & (fault[1:] > FAULT_THRESHOLD))
        assert len(named) >= 4
        assert np.all(named - begins[: len(named)] >= 30)
        assert np.diff(fault).max() < 0.012


def test_faults_take_turns() -> None:
    """Two faults never act at once, and both are gone again between episodes."""
    severity = fault_severity(4 * 3600, np.random.default_rng(0))
    assert np.all(severity.cavitation * severity.bearing_wear == 0.0)
    ends = np.flatnonzero((faulty(severity)[:-1] > 0.0) & (faulty(severity)[1:] == 0.0))
    assert len(ends) >= 8
    assert all(later - earlier > 300 for earlier, later in pairwise(ends.tolist()))


def test_the_label_switches_at_the_threshold(truth: PumpTruth) -> None:
    """A running pump is called faulty exactly while the severity is past the threshold."""
    labels, runs = truth.labels(), truth.speed > 0.5
    assert np.array_equal(labels[runs] == "cavitation", truth.severity.cavitation[runs] > FAULT_THRESHOLD)
    assert np.array_equal(labels[runs] == "bearing_wear", truth.severity.bearing_wear[runs] > FAULT_THRESHOLD)


def test_cavitation_makes_the_water_restless(truth: PumpTruth) -> None:
    """Cavitation shakes pressure and vibration from second to second, and costs flow."""
    steady = truth.speed > 0.99
    cavitates = steady & (truth.severity.cavitation > 0.7)
    healthy = steady & (faulty(truth.severity) == 0.0)
    for signal in (truth.pressure, truth.vibration):
        change = np.abs(np.diff(signal, prepend=signal[:1]))
        assert change[cavitates].mean() > 1.5 * change[healthy].mean()
    assert truth.vibration[cavitates].mean() > 1.2 * truth.vibration[healthy].mean()


def test_a_worn_bearing_beats(character: PumpCharacter, truth: PumpTruth) -> None:
    """Bearing wear raises vibration with a slow beat near the bearing's own period, and current a little."""
    worst = np.flatnonzero((truth.speed > 0.99) & (truth.severity.bearing_wear > 0.75))
    stretch = max(np.split(worst, np.flatnonzero(np.diff(worst) > 1) + 1), key=len)
    vibration = truth.vibration[stretch] - truth.vibration[stretch].mean()
    strongest = int(np.argmax(np.abs(np.fft.rfft(vibration * np.hanning(len(vibration))))))
    assert len(vibration) / strongest == pytest.approx(character.bearing_period_s, rel=0.3)


def test_one_sample_does_not_tell_the_modes(recording: Recording) -> None:
    """No threshold on the vibration of one row tells a running pump's healthy rows from its faulty ones."""
    assert recording.labels is not None
    runs = recording.labels != "idle"
    vibration, is_faulty = recording.channel("vibration")[runs], recording.labels[runs] != "normal"
    thresholds = np.quantile(vibration, np.linspace(0.02, 0.98, 49))
    assert max(np.mean((vibration > threshold) == is_faulty) for threshold in thresholds) < 0.92


def test_the_past_foretells_flow_and_pressure() -> None:
    """Ten steps ahead, a linear model of the last 30 rows beats persistence by 20 % on an unknown pump."""
    *known, unseen = [simulated(pump, 1.0, seed=k).values for k, pump in enumerate(pump_characters(5, seed=3))]
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


def test_demand_moves_in_cycles(character: PumpCharacter) -> None:
    """Demand has a fast cycle: it comes back after one batch period more alike than after half of it."""
    wanted = demand(character, 3600, np.random.default_rng(0))
    half, whole = round(character.batch_period_s / 2), round(character.batch_period_s)
    apart = {lag: np.mean((wanted[lag:] - wanted[:-lag]) ** 2) for lag in (half, whole)}
    assert apart[whole] < 0.6 * apart[half]
