"""The course of a training: passes over the recordings, one after the other, cut into rounds.

    pass 1 ───────────────┊ pass 2 ───────────────┊ pass 3 ───        ┊ the carried state is forgotten
    round 1 ──│ round 2 ──│ round 3 ──│ round 4 ──│ round 5 ──        │ the validation part is looked at

Without ``evaluate_every`` a round is a pass.  What a batch holds follows from the seed and its place alone, so that a
resumed training repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from msgspec import Struct

from stream_gru.config.train_schema import TrainingConfig
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.augmentation import Jitter
from stream_gru.training.segments import Batch, Plan, Rows, Scaling, batches
from stream_gru.training.stateful_lanes import stream_plan, training_plan
from stream_gru.training.windows import window_plan


class Place(Struct, frozen=True):
    """Where a training stands: finished passes, batches done of the pass that goes on, updates in all."""

    epoch: int = 0
    batch: int = 0
    updates: int = 0


@dataclass(frozen=True)
class _Pass:
    epoch: int
    plan: Plan
    jitter: Jitter


class Course:
    """Which batch comes when, with which learning rate, and where rounds end."""

    def __init__(self, spec: NetworkSpec, training: TrainingConfig, rows: Rows, scaling: Scaling) -> None:
        """``rows`` to train on."""
        self.spec = spec
        self.training = training
        self.rows = rows
        self.scaling = scaling
        self._pass: _Pass | None = None

    @property
    def rounds_are_passes(self) -> bool:
        """Whether every round is a whole pass."""
        return not (self.training.evaluate_every or self.training.max_updates)

    def finished(self, place: Place) -> Literal["max_updates", "epochs"] | None:
        """Which budget is used up, None while there is some left."""
        if self.training.max_updates:
            return "max_updates" if place.updates >= self.training.max_updates else None
        return "epochs" if place.epoch >= self.training.epochs else None

    def round_ends(self, place: Place) -> bool:
        """Whether a round ends here."""
        every = self.training.evaluate_every
        return self.finished(place) is not None or (place.updates % every if every else place.batch) == 0

    def left_of_round(self, place: Place) -> int:
        """Updates to the end of the round, at most."""
        every, most = self.training.evaluate_every, self.training.max_updates
        left = every - place.updates % every if every else self._left_of_pass(place)
        return min(left, most - place.updates) if most else left

    def stretch(self, place: Place) -> int:
        """Updates to the end of the round or of the pass, whichever comes first."""
        return min(self.left_of_round(place), self._left_of_pass(place))

    def after(self, place: Place, updates: int) -> Place:
        """The place so many updates further on, in the same pass or at the beginning of the next."""
        done = place.batch + updates
        over = done == len(self._at(place.epoch).plan)
        return Place(place.epoch + over, 0 if over else done, place.updates + updates)

    def epochs(self, place: Place) -> float:
        """Passes so far, a part of one included."""
        return place.epoch + (place.batch / len(self._at(place.epoch).plan) if place.batch else 0.0)

    def rate(self, place: Place) -> float:
        """Learning rate of the coming update; the cosine falls to 0 over all of them."""
        if self.training.schedule == "constant":
            return self.training.learning_rate
        most = self.training.max_updates
        share = place.updates / most if most else self.epochs(place) / self.training.epochs
        return self.training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))

    def rates(self, place: Place, count: int) -> Iterator[float]:
        """Learning rate of each of the next updates of this pass."""
        for number in range(count):
            yield self.rate(Place(place.epoch, place.batch + number, place.updates + number))

    def batches(self, place: Place, count: int) -> Iterator[Batch]:
        """The next batches of this pass."""
        here, stop = self._at(place.epoch), place.batch + count
        plan = part_of(here.plan, place.batch, stop)
        for number, batch in zip(range(place.batch, stop), self._cut(self.rows, plan), strict=True):
            yield here.jitter(batch, here.plan.first[number], number)

    def measuring(self, rows: Rows, plan: Plan) -> Iterator[Batch]:
        """All batches of a `measuring_plan`, as they are."""
        return self._cut(rows, plan)

    def measuring_plan(self, rows: Rows) -> Plan:
        """The plan of a measurement: everything once, in order."""
        t = self.training
        if t.regime == "windowed":
            return window_plan(rows, t.window, t.stride, t.batch_size, t.window_loss, t.warm_up, None)
        return stream_plan(rows, t.batch_size, t.bptt_steps, t.warm_up)

    def _left_of_pass(self, place: Place) -> int:
        return len(self._at(place.epoch).plan) - place.batch

    def _at(self, epoch: int) -> _Pass:
        if self._pass is None or self._pass.epoch != epoch:
            jitter = Jitter.draw(self.rows, self.scaling, self.training, self.spec, epoch)
            self._pass = _Pass(epoch, self._plan(epoch), jitter)
        return self._pass

    def _plan(self, epoch: int) -> Plan:
        t = self.training
        rng = np.random.default_rng([t.seed, epoch]) if t.shuffle else None
        if t.regime == "windowed":
            return window_plan(self.rows, t.window, t.stride, t.batch_size, t.window_loss, t.warm_up, rng)
        return training_plan(self.rows, t.batch_size, t.bptt_steps, t.warm_up, rng)

    def _cut(self, rows: Rows, plan: Plan) -> Iterator[Batch]:
        horizon = 0 if self.spec.forecast is None else self.spec.forecast.horizon
        return batches(rows, plan, self.spec.target_index, horizon)


def part_of(plan: Plan, start: int, stop: int) -> Plan:
    """Some batches of a plan."""
    here = slice(start, stop)
    return replace(plan, first=plan.first[here], valid=plan.valid[here], age=plan.age[here])
