"""How faults come and go: slowly worse, a while at their worst, then repaired.

Decision: a fault is present long before it is called by its name. A row carries the label of the fault only
once the severity has passed FAULT_THRESHOLD, as an inspector would decide; below it the row is `normal`.
"""

from dataclasses import dataclass

import numpy as np

from stream_gru.examples.simulators.recording import F64

FAULT_THRESHOLD = 0.35
ONSET_S = (90.0, 180.0)
WORST_S = (100.0, 180.0)
RECOVERY_S = (25.0, 50.0)
HEALTHY_S = (300.0, 480.0)


@dataclass(frozen=True, eq=False)
class Severity:
    """(N,) severity of each fault, 0 healthy to 1 worst; never both above 0 at once."""

    cavitation: F64
    bearing_wear: F64


def fault_severity(n: int, rng: np.random.Generator) -> Severity:
    """Return the severities of n seconds; in every pair of episodes each fault comes once, in any order."""
    pairs = 1 + int(n / (2.0 * (HEALTHY_S[0] + ONSET_S[0] + WORST_S[0] + RECOVERY_S[0])))
    cavitates_first = rng.integers(0, 2, pairs).astype(bool)
    is_cavitation = np.stack([cavitates_first, ~cavitates_first], axis=1).ravel()
    spells = np.stack([rng.uniform(*s, 2 * pairs) for s in (HEALTHY_S, ONSET_S, WORST_S, RECOVERY_S)], axis=1)
    spells[0, 0] *= rng.uniform(0.3, 1.0)
    peaks = rng.uniform(0.8, 1.0, 2 * pairs)
    return Severity(_episodes(n, spells, peaks * is_cavitation), _episodes(n, spells, peaks * ~is_cavitation))


def _episodes(n: int, spells: F64, peaks: F64) -> F64:
    """Draw (n,) severity through the corners of (E, 4) spells: healthy, onset, worst, recovery, in s."""
    corners = np.concatenate([[0.0], np.cumsum(spells.ravel())])
    heights = np.stack([0.0 * peaks, peaks, peaks, 0.0 * peaks], axis=1).ravel()
    return np.asarray(np.interp(np.arange(n), corners, np.concatenate([[0.0], heights])))
