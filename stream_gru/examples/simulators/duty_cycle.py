"""What the plant asks of a pump: when it runs, and how much water it wants."""

import numpy as np
from numpy.typing import NDArray

from stream_gru.examples.simulators.pump_parameters import PumpCharacter
from stream_gru.examples.simulators.recording import F64
from stream_gru.examples.simulators.signals import coloured_noise, random_ramps, wandering_phase

LEAST_DEMAND, MOST_DEMAND = 0.40, 1.20


def run_command(character: PumpCharacter, n: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return (n,) True while the pump is told to run; spells of both are within 25 % of their mean."""
    spells = 2 + 2 * int(n / (0.75 * (character.run_s + character.rest_s)))
    mean_s = np.where(np.arange(spells) % 2 == 0, character.run_s, character.rest_s)
    lengths = mean_s * rng.uniform(0.75, 1.25, spells)
    # The recording starts somewhere inside a spell of work, not at its beginning.
    lengths[0] *= rng.uniform(0.3, 1.0)
    spell = np.searchsorted(np.cumsum(lengths), np.arange(n), side="right")
    return np.asarray(spell % 2 == 0)


def demand(character: PumpCharacter, n: int, rng: np.random.Generator) -> F64:
    """Return (n,) demand as a share of rated flow: a load cycle, a batch consumer, ramps and restlessness."""
    slow = np.sin(wandering_phase(n, character.load_period_s, 0.08, rng))
    # The hyperbolic tangent gives the valve end stops, where it rests for a moment.
    batch = np.tanh(1.5 * np.sin(wandering_phase(n, character.batch_period_s, 0.04, rng)))
    wanted = character.demand_level + character.load_swing * slow + character.batch_swing * batch
    wanted += random_ramps(n, (120.0, 420.0), 0.05, rng) + coloured_noise(n, 25.0, 0.007, rng)
    return np.asarray(np.clip(wanted, LEAST_DEMAND, MOST_DEMAND))
