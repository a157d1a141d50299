"""The schedule of a training: epochs over the recordings, cut into validation intervals.

    epoch 1 ─────────────────┊ epoch 2 ─────────────────┊ epoch 3 ───       ┊ the carried state is dropped
    interval 1 ─│ interval 2 ─│ interval 3 ─│ interval 4 ─│ interval 5      │ the validation part is measured

Without ``evaluate_every`` an interval is an epoch.  What a batch holds depends only on the seed and the cursor, so that
a resumed training repeats it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import Struct

from stream_gru.config.train_schema import TrainingConfig
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.augmentation import Augmentation
from stream_gru.training.batches import Batch, BatchPlan, cut_batches, training_plan, validation_plan, window_plan
from stream_gru.training.splits import Scaling, SegmentTable


class Cursor(Struct, frozen=True):
    """How far a training has come: finished epochs, finished batches of the current epoch, updates in all."""

    epoch: int = 0
    batch: int = 0
    updates: int = 0


@dataclass(frozen=True)
class _Epoch:
    number: int
    plan: BatchPlan
    augmentation: Augmentation


class TrainingSchedule:
    """Which batch comes when, with which learning rate, and where validation intervals end."""

    def __init__(self, spec: NetworkSpec, training: TrainingConfig, table: SegmentTable, scaling: Scaling) -> None:
        """``table``: the segments to train on."""
        self.spec = spec
        self.training = training
        self.table = table
        self.scaling = scaling
        self._epoch: _Epoch | None = None

    @property
    def validates_each_epoch(self) -> bool:
        """Whether every validation interval is a whole epoch."""
        return not (self.training.evaluate_every or self.training.max_updates)

    def finished(self, cursor: Cursor) -> Literal["max_updates", "epochs"] | None:
        """Which limit has been reached, None while training continues."""
        if self.training.max_updates:
            return "max_updates" if cursor.updates >= self.training.max_updates else None
        return "epochs" if cursor.epoch >= self.training.epochs else None

    def interval_ends(self, cursor: Cursor) -> bool:
        """Whether a validation interval ends here."""
        every = self.training.evaluate_every
        return self.finished(cursor) is not None or (cursor.updates % every if every else cursor.batch) == 0

    def updates_left_in_interval(self, cursor: Cursor) -> int:
        """Updates to the end of the validation interval, at most."""
        every, most = self.training.evaluate_every, self.training.max_updates
        left = every - cursor.updates % every if every else self._updates_left_in_epoch(cursor)
        return min(left, most - cursor.updates) if most else left

    def next_updates(self, cursor: Cursor) -> int:
        """Updates to the end of the interval or of the epoch, whichever comes first."""
        return min(self.updates_left_in_interval(cursor), self._updates_left_in_epoch(cursor))

    def advance(self, cursor: Cursor, updates: int) -> Cursor:
        """The cursor after ``updates`` more, in the same epoch or at the beginning of the next."""
        done = cursor.batch + updates
        over = done == len(self._at(cursor.epoch).plan)
        return Cursor(cursor.epoch + over, 0 if over else done, cursor.updates + updates)

    def epochs(self, cursor: Cursor) -> float:
        """Epochs so far, with the finished fraction of the current one."""
        return cursor.epoch + (cursor.batch / len(self._at(cursor.epoch).plan) if cursor.batch else 0.0)

    def learning_rate(self, cursor: Cursor) -> float:
        """Learning rate of the next update; ``cosine`` falls to 0 over the whole training."""
        if self.training.schedule == "constant":
            return self.training.learning_rate
        most = self.training.max_updates
        share = cursor.updates / most if most else self.epochs(cursor) / self.training.epochs
        return self.training.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))

    def learning_rates(self, cursor: Cursor, count: int) -> Iterator[float]:
        """Learning rate of each of the next ``count`` updates of this epoch."""
        for number in range(count):
            yield self.learning_rate(Cursor(cursor.epoch, cursor.batch + number, cursor.updates + number))

    def batches(self, cursor: Cursor, count: int) -> Iterator[Batch]:
        """The next ``count`` batches of this epoch, augmented."""
        here, stop = self._at(cursor.epoch), cursor.batch + count
        plan = here.plan.part(cursor.batch, stop)
        for number, batch in zip(range(cursor.batch, stop), self._cut(self.table, plan), strict=True):
            yield here.augmentation(batch, here.plan.first[number], number)

    def validation_batches(self, table: SegmentTable, plan: BatchPlan) -> Iterator[Batch]:
        """All batches of a `validation_plan`, without augmentation."""
        return self._cut(table, plan)

    def validation_plan(self, table: SegmentTable) -> BatchPlan:
        """The plan of a validation: every row once, in order."""
        t = self.training
        if t.regime == "windowed":
            return window_plan(table, t.window, t.stride, t.batch_size, t.window_loss, t.warm_up, None)
        return validation_plan(table, t.batch_size, t.bptt_steps, t.warm_up)

    def _updates_left_in_epoch(self, cursor: Cursor) -> int:
        return len(self._at(cursor.epoch).plan) - cursor.batch

    def _at(self, epoch: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != epoch:
            augmentation = Augmentation.draw(self.table, self.scaling, self.training, self.spec, epoch)
            self._epoch = _Epoch(epoch, self._plan(epoch), augmentation)
        return self._epoch

    def _plan(self, epoch: int) -> BatchPlan:
        t = self.training
        rng = np.random.default_rng([t.seed, epoch]) if t.shuffle else None
        if t.regime == "windowed":
            return window_plan(self.table, t.window, t.stride, t.batch_size, t.window_loss, t.warm_up, rng)
        return training_plan(self.table, t.batch_size, t.bptt_steps, t.warm_up, rng)

    def _cut(self, table: SegmentTable, plan: BatchPlan) -> Iterator[Batch]:
        horizon = 0 if self.spec.forecast is None else self.spec.forecast.horizon
        return cut_batches(table, plan, self.spec.target_index, horizon)
