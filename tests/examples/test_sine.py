"""The simulated sines are sines with the configured noise."""

import numpy as np
import pytest

from stream_gru.examples.simulators.recording import NS_PER_S, SineSettings, simulate_sine, sine_phases


def test_the_signal_is_a_sine_and_the_rest_is_noise() -> None:
    """Taking sin(0.3 * 0.1 * k + phase) away leaves noise of standard deviation 0.1 around zero."""
    recording = simulate_sine("sine-1", 0.5, 1.0, np.random.default_rng(0), 0)
    rest = recording.channel("x") - np.sin(0.3 * 0.1 * np.arange(3600) + 0.5)
    assert rest.std() == pytest.approx(0.1, rel=0.05)
    assert abs(rest.mean()) < 0.01


def test_the_period_sets_the_time_of_the_rows() -> None:
    """With a period of 0.5 s an hour has 7200 rows, half a second apart."""
    recording = simulate_sine("sine-1", 0.0, 1.0, np.random.default_rng(0), 7, SineSettings(period_s=0.5))
    assert len(recording) == 7200
    assert recording.time_ns[0] == 7
    assert set(np.diff(recording.time_ns).tolist()) == {NS_PER_S // 2}


def test_streams_differ_in_phase() -> None:
    """Four streams start a quarter turn apart."""
    assert np.allclose(np.diff(sine_phases(4)), np.pi / 2.0)
