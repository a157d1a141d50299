"""Simulated recordings: their rows with event times, the signals they are made of, and sine waves."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Labels = NDArray[np.str_]

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, eq=False)
class Recording:
    """N rows of one stream, in the order in which they were written.

    stream_id: name of the device, equal to the stem of the file it is written to.
    stream_column: heading of the column that holds the stream id.
    channels: C channel names; `decimals` gives the resolution of each, in digits after the point.
    time_ns: (N,) int64, event time in ns since 1970-01-01 UTC; correct even when rows are out of order.
    values: (N, C) float64 in the unit of each channel; NaN is an empty value.
    labels: (N,) the mode of each row, or None for a recording without classes.
    """

    stream_id: str
    stream_column: str
    channels: tuple[str, ...]
    decimals: tuple[int, ...]
    time_ns: I64
    values: F64
    labels: Labels | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.time_ns)

    def channel(self, name: str) -> F64:
        """Return the (N,) values of one channel."""
        return self.values[:, self.channels.index(name)]

    def take(self, rows: I64) -> "Recording":
        """Return the recording made of these row numbers, in this order; a number may occur twice."""
        labels = None if self.labels is None else self.labels[rows]
        return Recording(
            self.stream_id,
            self.stream_column,
            self.channels,
            self.decimals,
            self.time_ns[rows],
            self.values[rows],
            labels,
        )


def row_times(n: int, start_ns: int, period_s: float = 1.0) -> I64:
    """Return (n,) event times in ns, `period_s` apart; each computed from the start, so that errors do not add up."""
    elapsed = np.rint(np.arange(n) * (period_s * NS_PER_S)).astype(np.int64)
    return np.asarray(start_ns + elapsed)


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


@dataclass(frozen=True)
class SineSettings:
    """x_k = sin(frequency * k * dt + phase) + noise; row k is written `k * period_s` after the start.

    frequency: rad per unit of the sine's own time. dt: that time from row to row. With the defaults a full
    turn takes 2 pi / 0.03 = 209 rows. period_s: seconds from row to row in the recording.
    """

    frequency: float = 0.3
    noise_sd: float = 0.1
    dt: float = 0.1
    period_s: float = 1.0


DEFAULT_SINE = SineSettings()


def simulate_sine(
    stream_id: str,
    phase: float,
    hours: float,
    rng: np.random.Generator,
    start_ns: int,
    settings: SineSettings = DEFAULT_SINE,
) -> Recording:
    """Return one noisy sine with the single channel `x` (no unit), phase in rad."""
    n = round(hours * 3600 / settings.period_s)
    x = np.sin(settings.frequency * settings.dt * np.arange(n) + phase) + rng.normal(0.0, settings.noise_sd, n)
    return Recording(stream_id, "stream", ("x",), (4,), row_times(n, start_ns, settings.period_s), x[:, np.newaxis])


def sine_phases(streams: int) -> tuple[float, ...]:
    """Return evenly spread phases in rad, the first 0."""
    return tuple(2.0 * np.pi * k / streams for k in range(streams))
