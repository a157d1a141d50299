"""Noisy sines: the smallest recording whose forecasts are easy to check."""

from dataclasses import dataclass

import numpy as np

from stream_gru.examples.simulators.recording import Recording, row_times


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
