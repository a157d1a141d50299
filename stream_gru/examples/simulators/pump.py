"""A centrifugal pump with its plant, faults and sensors, one row a second.

    duty ──▶ speed ──▶ operating point ──▶ current, vibration ──▶ sensors ──▶ Recording
    faults ─────────────┴──────────────────────┘

Source: textbook pump hydraulics: a quadratic pump curve scaled by the affinity laws (flow ~ n, pressure
~ n^2, power ~ n^3) meets a quadratic system curve (static pressure plus friction ~ flow^2); cavitation as a
shortage of net positive suction head, of which a pump requires more the more it pumps.
"""

from dataclasses import dataclass

import numpy as np

from stream_gru.examples.simulators.duty_cycle import demand, run_command
from stream_gru.examples.simulators.machine_faults import FAULT_THRESHOLD, Severity, fault_severity
from stream_gru.examples.simulators.pump_parameters import PumpCharacter, pump_characters
from stream_gru.examples.simulators.recording import F64, Labels, Recording, row_times
from stream_gru.examples.simulators.signals import coloured_noise, first_order_lag, wandering_phase

__all__ = [
    "CHANNELS",
    "MODES",
    "PumpCharacter",
    "PumpTruth",
    "pump_characters",
    "pump_truth",
    "simulate_pump",
]

CHANNELS = ("flow", "pressure", "current", "vibration")
DECIMALS = (2, 1, 3, 3)
MODES = ("idle", "normal", "cavitation", "bearing_wear")
IDLE_SPEED = 0.15
MAINS_VOLT, POWER_FACTOR = 400.0, 0.85
CONTROLLER_CURRENT = 0.06
FLOOR_VIBRATION = 0.12


@dataclass(frozen=True, eq=False)
class PumpTruth:
    """What really happens, before the sensors: each (N,) float64 at one row a second.

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


def simulate_pump(character: PumpCharacter, hours: float, rng: np.random.Generator, start_ns: int) -> Recording:
    """Return one pump's recording: CHANNELS in L/min, kPa, A, mm/s RMS; a row a second; labels from MODES."""
    truth = pump_truth(character, round(hours * 3600), rng)
    times = row_times(len(truth.speed), start_ns)
    values = _sense(character, truth, rng)
    return Recording(character.stream_id, "pump", CHANNELS, DECIMALS, times, values, truth.labels())


def pump_truth(character: PumpCharacter, n: int, rng: np.random.Generator) -> PumpTruth:
    """Return n seconds of the pump's physics without sensors."""
    is_on = run_command(character, n, rng)
    severity = fault_severity(n, rng)
    speed = first_order_lag(is_on.astype(np.float64), character.spin_up_s, character.spin_down_s)
    bubbles = _bubbles(character, speed, severity, rng)
    flow, pressure = _operating_point(character, speed, demand(character, n, rng), bubbles)
    current = _current(character, speed, flow, pressure, severity)
    vibration = _vibration(character, speed, flow, severity, bubbles, rng)
    return PumpTruth(speed, flow, pressure, current, vibration, severity)


def _bubbles(character: PumpCharacter, speed: F64, severity: Severity, rng: np.random.Generator) -> F64:
    """Return (N,) cavitation intensity >= 0: vapour comes and goes within seconds, only in moving water."""
    restless = np.exp(coloured_noise(len(speed), 1.5, 0.40, rng))
    return np.asarray(character.cavitation_propensity * severity.cavitation * speed**2 * restless)


def _operating_point(character: PumpCharacter, speed: F64, wanted: F64, bubbles: F64) -> tuple[F64, F64]:
    """Return (N,) flow and pressure where the pump curve n^2 p0 - a q^2 meets the system curve ps + k q^2."""
    a = character.curve_drop * character.shutoff_pressure / character.rated_flow**2
    healthy = character.shutoff_pressure * speed**2
    # The plant sets its valves (a + k) so that a healthy pump at full speed gives what is wanted.
    valves = (character.shutoff_pressure - character.static_pressure) / (character.rated_flow * wanted) ** 2
    # Vapour costs head, and more of it at high flow, where the net positive suction head required is higher.
    raised = healthy * (1.0 - 0.05 * bubbles * (0.4 + 0.6 * wanted**2))
    steady = np.sqrt(np.maximum(raised - character.static_pressure, 0.0) / valves)
    flow = first_order_lag(steady, character.flow_lag_s, 0.7 * character.flow_lag_s)
    # A check valve keeps the standing column of water when the pump cannot.
    return flow, np.maximum(raised - a * flow**2, character.static_pressure)


def _current(character: PumpCharacter, speed: F64, flow: F64, pressure: F64, severity: Severity) -> F64:
    """Return (N,) motor current in A: hydraulic power over efficiency, no-load current, acceleration."""
    off_design = flow / np.maximum(speed, 0.2) / character.rated_flow - 1.0
    efficiency = character.pump_efficiency * np.maximum(1.0 - 0.8 * off_design**2, 0.3)
    watt = flow * pressure / 60.0  # L/min times kPa
    shaft = watt / efficiency * (1.0 + 0.05 * severity.bearing_wear)
    load = shaft / (character.motor_efficiency * np.sqrt(3.0) * MAINS_VOLT * POWER_FACTOR)
    inrush = 12.0 * np.maximum(np.diff(speed, prepend=speed[:1]), 0.0)
    return np.asarray(CONTROLLER_CURRENT + character.no_load_current * speed + load + inrush)


def _vibration(
    character: PumpCharacter,
    speed: F64,
    flow: F64,
    severity: Severity,
    bubbles: F64,
    rng: np.random.Generator,
) -> F64:
    """Return (N,) vibration in mm/s RMS: imbalance ~ n^2, off-design flow, and the two faults; powers add."""
    off_design = flow / np.maximum(speed, 0.2) / character.rated_flow - 1.0
    healthy = character.base_vibration * speed**2 * (1.0 + 2.0 * off_design**2)
    beat = 1.0 + 0.6 * np.sin(wandering_phase(len(speed), character.bearing_period_s, 0.10, rng))
    worn = character.bearing_looseness * severity.bearing_wear * beat * speed**2
    burst = 2.1 * bubbles
    # Independent sources add as mean squares, not as amplitudes.
    return np.asarray(np.sqrt(FLOOR_VIBRATION**2 + (healthy + worn) ** 2 + burst**2))


def _sense(character: PumpCharacter, truth: PumpTruth, rng: np.random.Generator) -> F64:
    """Return (N, 4) readings: per channel a slowly drifting gain, proportional noise and a noise floor."""
    n = len(truth.speed)
    exact = np.stack([truth.flow, truth.pressure, truth.current, truth.vibration], axis=1)
    drift = np.stack([coloured_noise(n, 3600.0, sd, rng) for sd in (0.006, 0.003, 0.006, 0.02)], axis=1)
    share = rng.normal(0.0, 1.0, (n, 4)) * np.array([0.006, 0.003, 0.010, 0.0])
    # A vibration meter's RMS over one second is itself a restless estimate.
    share[:, 3] = coloured_noise(n, 2.0, 0.09, rng)
    floor = rng.normal(0.0, 1.0, (n, 4)) * np.array([0.15, 0.5, 0.01, 0.015])
    read = exact * (1.0 + drift + character.noise * share) + character.noise * floor
    return np.asarray(np.maximum(read, 0.0))
