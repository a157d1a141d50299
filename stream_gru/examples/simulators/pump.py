"""A centrifugal pump with its plant, machine faults and sensors, one row per second.

    duty cycle ─────▶ speed ─▶ operating point ─▶ current, vibration ─▶ sensors ─▶ Recording
    machine faults ─────────────┴──────────────────────┘

Decision: a fault exists long before its label.  A row has the label of the fault only when the severity exceeds
`FAULT_THRESHOLD`, as an inspector would decide; below it the row is ``normal``.

Source: textbook pump hydraulics: a quadratic pump curve scaled by the affinity laws (flow ~ n, pressure ~ n^2, power ~
n^3) meets a quadratic system curve (static pressure plus friction ~ flow^2); cavitation as a lack of net positive
suction head, of which a pump requires more at higher flow.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_gru.examples.simulators.recording import (
    F64,
    Labels,
    Recording,
    coloured_noise,
    first_order_lag,
    random_ramps,
    row_times,
    wandering_phase,
)

CHANNELS = ("flow", "pressure", "current", "vibration")
DECIMALS = (2, 1, 3, 3)
MODES = ("idle", "normal", "cavitation", "bearing_wear")
IDLE_SPEED = 0.15
MAINS_VOLT, POWER_FACTOR = 400.0, 0.85
CONTROLLER_CURRENT = 0.06
FLOOR_VIBRATION = 0.12
LEAST_DEMAND, MOST_DEMAND = 0.40, 1.20
# Severity from which a fault is labelled; durations in seconds, shortest and longest.
FAULT_THRESHOLD = 0.35
ONSET_S = (90.0, 180.0)
WORST_S = (100.0, 180.0)
RECOVERY_S = (25.0, 50.0)
HEALTHY_S = (300.0, 480.0)


@dataclass(frozen=True)
class PumpParameters:
    """The constants of one centrifugal pump, its motor, plant and sensors.

    Pressures are heads times density times gravity, so the pump curve is written in kPa.
    """

    stream_id: str
    rated_flow: float  # L/min, best efficiency point at full speed
    shutoff_pressure: float  # kPa at zero flow and full speed
    curve_drop: float  # share of the shut-off pressure lost at rated flow
    static_pressure: float  # kPa, held by the check valve at standstill
    pump_efficiency: float  # at the best efficiency point
    motor_efficiency: float
    no_load_current: float  # A at full speed
    spin_up_s: float  # time constants of the speed and of the water in the pipe
    spin_down_s: float
    flow_lag_s: float
    demand_level: float  # mean demand as a share of rated flow
    load_period_s: float  # slow load cycle of the plant
    load_swing: float  # its amplitude, share of rated flow
    batch_period_s: float  # a consumer that opens and closes its valve periodically
    batch_swing: float
    run_s: float  # mean time on and off
    rest_s: float
    base_vibration: float  # mm/s RMS at rated flow and full speed
    bearing_looseness: float  # mm/s RMS added by a fully worn bearing
    bearing_period_s: float  # slow beat of the worn bearing
    cavitation_propensity: float  # gain of all cavitation effects
    noise: float  # gain of all sensor noise


def pump_parameters(n: int, seed: int) -> tuple[PumpParameters, ...]:
    """Return n pumps `pump-1` to `pump-n`; pump k does not depend on n."""
    return tuple(_draw(f"pump-{k}", np.random.default_rng([seed, k, 0])) for k in range(1, n + 1))


def _draw(stream_id: str, rng: np.random.Generator) -> PumpParameters:
    shutoff = rng.uniform(430.0, 520.0)
    return PumpParameters(
        stream_id=stream_id,
        rated_flow=rng.uniform(200.0, 280.0),
        shutoff_pressure=shutoff,
        curve_drop=rng.uniform(0.24, 0.32),
        static_pressure=shutoff * rng.uniform(0.28, 0.38),
        pump_efficiency=rng.uniform(0.62, 0.72),
        motor_efficiency=rng.uniform(0.84, 0.90),
        no_load_current=rng.uniform(1.3, 1.7),
        spin_up_s=rng.uniform(4.0, 6.5),
        spin_down_s=rng.uniform(6.0, 9.0),
        flow_lag_s=rng.uniform(2.5, 4.5),
        demand_level=rng.uniform(0.82, 0.94),
        load_period_s=rng.uniform(220.0, 420.0),
        load_swing=rng.uniform(0.09, 0.13),
        batch_period_s=rng.uniform(34.0, 50.0),
        batch_swing=rng.uniform(0.07, 0.10),
        run_s=rng.uniform(420.0, 560.0),
        rest_s=rng.uniform(80.0, 110.0),
        base_vibration=rng.uniform(1.35, 1.65),
        bearing_looseness=rng.uniform(1.2, 1.6),
        bearing_period_s=rng.uniform(9.0, 15.0),
        cavitation_propensity=rng.uniform(0.95, 1.2),
        noise=rng.uniform(0.85, 1.2),
    )


def run_command(parameters: PumpParameters, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return (n,) True while the pump is switched on; durations on and off are within 25 % of their mean."""
    durations = 2 + 2 * int(n / (0.75 * (parameters.run_s + parameters.rest_s)))
    mean_s = np.where(np.arange(durations) % 2 == 0, parameters.run_s, parameters.rest_s)
    lengths = mean_s * rng.uniform(0.75, 1.25, durations)
    # The recording starts inside a period on, not at its beginning.
    lengths[0] *= rng.uniform(0.3, 1.0)
    period = np.searchsorted(np.cumsum(lengths), np.arange(n), side="right")
    return np.asarray(period % 2 == 0)


def demand(parameters: PumpParameters, n: int, rng: np.random.Generator) -> F64:
    """Return (n,) demand as a share of rated flow: a load cycle, a batch consumer, ramps and noise."""
    slow = np.sin(wandering_phase(n, parameters.load_period_s, 0.08, rng))
    # The hyperbolic tangent models the end stops of the valve.
    batch = np.tanh(1.5 * np.sin(wandering_phase(n, parameters.batch_period_s, 0.04, rng)))
    wanted = parameters.demand_level + parameters.load_swing * slow + parameters.batch_swing * batch
    wanted += random_ramps(n, (120.0, 420.0), 0.05, rng) + coloured_noise(n, 25.0, 0.007, rng)
    return np.asarray(np.clip(wanted, LEAST_DEMAND, MOST_DEMAND))


@dataclass(frozen=True, eq=False)
class Severity:
    """(N,) severity of each fault, 0 healthy to 1 worst; at most one above 0 at a time."""

    cavitation: F64
    bearing_wear: F64


def fault_severity(n: int, rng: np.random.Generator) -> Severity:
    """Return the severities of n seconds; each pair of episodes has both faults, in random order."""
    pairs = 1 + int(n / (2.0 * (HEALTHY_S[0] + ONSET_S[0] + WORST_S[0] + RECOVERY_S[0])))
    cavitates_first = rng.integers(0, 2, pairs).astype(bool)
    is_cavitation = np.stack([cavitates_first, ~cavitates_first], axis=1).ravel()
    durations = np.stack([rng.uniform(*s, 2 * pairs) for s in (HEALTHY_S, ONSET_S, WORST_S, RECOVERY_S)], axis=1)
    durations[0, 0] *= rng.uniform(0.3, 1.0)
    peaks = rng.uniform(0.8, 1.0, 2 * pairs)
    return Severity(_episodes(n, durations, peaks * is_cavitation), _episodes(n, durations, peaks * ~is_cavitation))


def _episodes(n: int, durations: F64, peaks: F64) -> F64:
    """Return (n,) severity, linear between (E, 4) durations in s: healthy, onset, worst, recovery."""
    corners = np.concatenate([[0.0], np.cumsum(durations.ravel())])
    heights = np.stack([0.0 * peaks, peaks, peaks, 0.0 * peaks], axis=1).ravel()
    return np.asarray(np.interp(np.arange(n), corners, np.concatenate([[0.0], heights])))


@dataclass(frozen=True, eq=False)
class PumpTruth:
    """True values before the sensors: each (N,) float64, one row per second.

    speed: share of full speed. flow: L/min. pressure: kPa at the outlet. current: A. vibration: mm/s RMS.
    """

    speed: F64
    flow: F64
    pressure: F64
    current: F64
    vibration: F64
    severity: Severity

    def labels(self) -> Labels:
        """Return (N,) modes: `idle` below IDLE_SPEED, else the fault past its threshold, else `normal`."""
        tests = [
            self.speed < IDLE_SPEED,
            self.severity.cavitation > FAULT_THRESHOLD,
            self.severity.bearing_wear > FAULT_THRESHOLD,
        ]
        return np.asarray(np.select(tests, ["idle", "cavitation", "bearing_wear"], "normal"))


def simulate_pump(parameters: PumpParameters, hours: float, rng: np.random.Generator, start_ns: int) -> Recording:
    """Return one pump's recording: CHANNELS in L/min, kPa, A, mm/s RMS; one row per second; labels from MODES."""
    truth = pump_truth(parameters, round(hours * 3600), rng)
    times = row_times(len(truth.speed), start_ns)
    values = _sense(parameters, truth, rng)
    return Recording(parameters.stream_id, "pump", CHANNELS, DECIMALS, times, values, truth.labels())


def pump_truth(parameters: PumpParameters, n: int, rng: np.random.Generator) -> PumpTruth:
    """Return n seconds of the pump's physics without sensors."""
    is_on = run_command(parameters, n, rng)
    severity = fault_severity(n, rng)
    speed = first_order_lag(is_on.astype(np.float64), parameters.spin_up_s, parameters.spin_down_s)
    bubbles = _bubbles(parameters, speed, severity, rng)
    flow, pressure = _operating_point(parameters, speed, demand(parameters, n, rng), bubbles)
    current = _current(parameters, speed, flow, pressure, severity)
    vibration = _vibration(parameters, speed, flow, severity, bubbles, rng)
    return PumpTruth(speed, flow, pressure, current, vibration, severity)


def _bubbles(parameters: PumpParameters, speed: F64, severity: Severity, rng: np.random.Generator) -> F64:
    """Return (N,) cavitation intensity >= 0: it fluctuates within seconds, only in moving water."""
    fluctuation = np.exp(coloured_noise(len(speed), 1.5, 0.40, rng))
    return np.asarray(parameters.cavitation_propensity * severity.cavitation * speed**2 * fluctuation)


def _operating_point(parameters: PumpParameters, speed: F64, wanted: F64, bubbles: F64) -> tuple[F64, F64]:
    """Return (N,) flow and pressure where the pump curve n^2 p0 - a q^2 meets the system curve ps + k q^2."""
    a = parameters.curve_drop * parameters.shutoff_pressure / parameters.rated_flow**2
    healthy = parameters.shutoff_pressure * speed**2
    # The plant sets its valves (a + k) so that a healthy pump at full speed delivers the demand.
    valves = (parameters.shutoff_pressure - parameters.static_pressure) / (parameters.rated_flow * wanted) ** 2
    # Vapour reduces the head, more so at high flow, where the required net positive suction head is higher.
    raised = healthy * (1.0 - 0.05 * bubbles * (0.4 + 0.6 * wanted**2))
    steady = np.sqrt(np.maximum(raised - parameters.static_pressure, 0.0) / valves)
    flow = first_order_lag(steady, parameters.flow_lag_s, 0.7 * parameters.flow_lag_s)
    # The check valve holds the static pressure when the pump cannot.
    return flow, np.maximum(raised - a * flow**2, parameters.static_pressure)


def _current(parameters: PumpParameters, speed: F64, flow: F64, pressure: F64, severity: Severity) -> F64:
    """Return (N,) motor current in A: hydraulic power over efficiency, no-load current, acceleration."""
    off_design = flow / np.maximum(speed, 0.2) / parameters.rated_flow - 1.0
    efficiency = parameters.pump_efficiency * np.maximum(1.0 - 0.8 * off_design**2, 0.3)
    watt = flow * pressure / 60.0  # L/min times kPa
    shaft = watt / efficiency * (1.0 + 0.05 * severity.bearing_wear)
    load = shaft / (parameters.motor_efficiency * np.sqrt(3.0) * MAINS_VOLT * POWER_FACTOR)
    inrush = 12.0 * np.maximum(np.diff(speed, prepend=speed[:1]), 0.0)
    return np.asarray(CONTROLLER_CURRENT + parameters.no_load_current * speed + load + inrush)


def _vibration(
    parameters: PumpParameters,
    speed: F64,
    flow: F64,
    severity: Severity,
    bubbles: F64,
    rng: np.random.Generator,
) -> F64:
    """Return (N,) vibration in mm/s RMS: imbalance ~ n^2, off-design flow, and the two faults; powers add."""
    off_design = flow / np.maximum(speed, 0.2) / parameters.rated_flow - 1.0
    healthy = parameters.base_vibration * speed**2 * (1.0 + 2.0 * off_design**2)
    beat = 1.0 + 0.6 * np.sin(wandering_phase(len(speed), parameters.bearing_period_s, 0.10, rng))
    worn = parameters.bearing_looseness * severity.bearing_wear * beat * speed**2
    burst = 2.1 * bubbles
    # Independent sources add as mean squares, not as amplitudes.
    return np.asarray(np.sqrt(FLOOR_VIBRATION**2 + (healthy + worn) ** 2 + burst**2))


def _sense(parameters: PumpParameters, truth: PumpTruth, rng: np.random.Generator) -> F64:
    """Return (N, 4) readings: per channel a slowly drifting gain, proportional noise and a noise floor."""
    n = len(truth.speed)
    exact = np.stack([truth.flow, truth.pressure, truth.current, truth.vibration], axis=1)
    drift = np.stack([coloured_noise(n, 3600.0, sd, rng) for sd in (0.006, 0.003, 0.006, 0.02)], axis=1)
    share = rng.normal(0.0, 1.0, (n, 4)) * np.array([0.006, 0.003, 0.010, 0.0])
    # A vibration meter's RMS over one second is itself a noisy estimate.
    share[:, 3] = coloured_noise(n, 2.0, 0.09, rng)
    floor = rng.normal(0.0, 1.0, (n, 4)) * np.array([0.15, 0.5, 0.01, 0.015])
    read = exact * (1.0 + drift + parameters.noise * share) + parameters.noise * floor
    return np.asarray(np.maximum(read, 0.0))
