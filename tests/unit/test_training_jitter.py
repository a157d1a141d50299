"""Jitter changes the calibration of a run, and nothing else."""

from __future__ import annotations

import numpy as np

from stream_gru.training.jitter import jittered
from stream_gru.training.runs import Rows, Run, Scaling, join_runs

SCALING = Scaling(np.array([10.0, -2.0], np.float32), np.array([2.0, 0.5], np.float32))


def rows() -> Rows:
    """Two runs of two channels and one calendar input."""
    rng = np.random.default_rng(0)
    return join_runs(
        [
            Run(
                stream=name,
                time_ns=np.arange(50, dtype=np.int64),
                x=rng.normal(size=(50, 3)).astype(np.float32),
                observed=np.ones((50, 2), np.bool_),
                label=np.zeros(50, np.int32),
            )
            for name in ("a", "b")
        ]
    )


def test_each_run_has_one_gain_and_one_offset() -> None:
    """Within a run a channel is scaled and shifted by the same numbers; another run has others; the calendar stays."""
    plain = rows()
    changed = jittered(plain, SCALING, 0.2, 0.5, np.random.default_rng(1))
    laws = set()
    for part in (slice(0, 50), slice(50, 100)):
        slope, shift = np.polyfit(plain.x[part, 0], changed.x[part, 0], 1)
        assert np.allclose(changed.x[part, 0], slope * plain.x[part, 0] + shift, atol=1e-4)
        laws.add(round(float(slope), 4))
    assert len(laws) == 2
    assert np.array_equal(changed.x[:, 2], plain.x[:, 2])


def test_without_jitter_nothing_is_copied() -> None:
    """The default leaves the rows alone."""
    plain = rows()
    assert jittered(plain, SCALING, 0.0, 0.0, np.random.default_rng(1)) is plain


def test_jitter_is_as_wide_as_asked() -> None:
    """Over many draws gain and offset have the spread that was asked for."""
    plain = rows()
    shifts = [
        float((jittered(plain, SCALING, 0.0, 0.5, np.random.default_rng(i)).x - plain.x)[0, 0]) for i in range(400)
    ]
    assert abs(np.std(shifts) / (0.5 * 2.0) - 1) < 0.15
