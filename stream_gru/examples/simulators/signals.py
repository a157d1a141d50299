"""Building blocks of simulated signals: lags, coloured noise, cycles, ramps.  One row is one second."""

import numpy as np

from stream_gru.examples.simulators.recording import F64


def first_order_lag(target: F64, rise_s: float, fall_s: float) -> F64:
    """Follow `target` (N,) through a first-order lag with one time constant upwards and one downwards, in s.

    Source: the exact discrete solution of tau dy/dt = u - y for an input held over each second.
    """
    rise, fall = 1.0 - np.exp(-1.0 / rise_s), 1.0 - np.exp(-1.0 / fall_s)
    followed = np.empty_like(target)
    y = float(target[0]) if len(target) else 0.0
    for k, u in enumerate(target.tolist()):
        y += (rise if u > y else fall) * (u - y)
        followed[k] = y
    return followed


def coloured_noise(n: int, memory_s: float, sd: float, rng: np.random.Generator) -> F64:
    """Return (n,) stationary AR(1) noise with this standard deviation and correlation time."""
    phi = float(np.exp(-1.0 / memory_s))
    shocks = rng.normal(0.0, sd * np.sqrt(1.0 - phi * phi), n)
    noise = np.empty(n)
    y = float(rng.normal(0.0, sd))
    for k, shock in enumerate(shocks.tolist()):
        y = phi * y + shock
        noise[k] = y
    return noise


def wandering_phase(n: int, period_s: float, jitter: float, rng: np.random.Generator) -> F64:
    """Return (n,) phase in rad of a cycle whose period drifts slowly by the fraction `jitter`."""
    rate = 1.0 + coloured_noise(n, 3.0 * period_s, jitter, rng)
    return rng.uniform(0.0, 2.0 * np.pi) + np.cumsum(2.0 * np.pi / period_s * rate)


def random_ramps(n: int, hold_s: tuple[float, float], sd: float, rng: np.random.Generator) -> F64:
    """Return (n,) straight ramps between levels N(0, sd) that lie `hold_s` (least, most) apart."""
    knots = 2 + int(n / hold_s[0])
    times = np.concatenate([[0.0], np.cumsum(rng.uniform(*hold_s, knots))])
    return np.interp(np.arange(n), times, rng.normal(0.0, sd, len(times)))
