"""PumpCharacter: what makes one pump different from its neighbour."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PumpCharacter:
    """The constants of one centrifugal pump, its motor, its plant and its sensors.

    Pressures are heads times density times gravity, so the pump curve is written in kPa.
    """

    stream_id: str
    rated_flow: float  # L/min, best efficiency point at full speed
    shutoff_pressure: float  # kPa at zero flow and full speed
    curve_drop: float  # share of the shut-off pressure lost at rated flow
    static_pressure: float  # kPa, the column of water that a check valve holds at standstill
    pump_efficiency: float  # at the best efficiency point
    motor_efficiency: float
    no_load_current: float  # A at full speed
    spin_up_s: float  # time constants of the speed and of the water in the pipe
    spin_down_s: float
    flow_lag_s: float
    demand_level: float  # mean demand as a share of rated flow
    load_period_s: float  # slow load cycle of the plant
    load_swing: float  # its amplitude, share of rated flow
    batch_period_s: float  # a consumer that slowly opens and closes its valve, over and over
    batch_swing: float
    run_s: float  # mean time on and off
    rest_s: float
    base_vibration: float  # mm/s RMS at rated flow and full speed
    bearing_looseness: float  # mm/s RMS added by a fully worn bearing
    bearing_period_s: float  # slow beat of the worn bearing
    cavitation_propensity: float  # gain of all cavitation effects
    noise: float  # gain of all sensor noise


def pump_characters(n: int, seed: int) -> tuple[PumpCharacter, ...]:
    """Return n pumps `pump-1` to `pump-n`; pump k is the same however many are asked for."""
    return tuple(_draw(f"pump-{k}", np.random.default_rng([seed, k, 0])) for k in range(1, n + 1))


def _draw(stream_id: str, rng: np.random.Generator) -> PumpCharacter:
    shutoff = rng.uniform(430.0, 520.0)
    return PumpCharacter(
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
