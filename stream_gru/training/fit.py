"""Find the weights: updates, early stopping on the validation loss, checkpoints on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import msgspec
import numpy as np

from stream_gru.config.train_schema import TrainingConfig
from stream_gru.core.errors import DataError
from stream_gru.core.types import F32
from stream_gru.model.keras.network import network_weights
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.batches import BatchPlan
from stream_gru.training.checkpoint import Arrays, TrainingState, fingerprint, load_checkpoint, save_checkpoint
from stream_gru.training.progress import Reporter, TensorBoardLog, interval_name
from stream_gru.training.schedule import Cursor, TrainingSchedule
from stream_gru.training.splits import Scaling, Segment, SegmentTable, join_segments
from stream_gru.training.train_step import Totals, Trainer, class_weights

SAVE_EVERY_S = 5.0
"""Least time between two checkpoints; an interval may be shorter than writing one takes."""

StopReason = Literal["patience", "epochs", "max_updates", "interrupted"]


@dataclass(frozen=True)
class FitResult:
    """Result of a training.

    ``model``    the plain sequence model with the kept weights (`stream_gru.model.keras.network.Networks`)
    ``weights``  the same weights, named and shaped as in a bundle
    ``history``  one row per validation: epoch (epochs so far), updates (in all, if intervals are not epochs),
                 learning_rate, loss, loss_forecast, loss_classes, accuracy, the same with the prefix ``val_``, seconds.
                 Losses are in scaled units and without penalties
    ``kept``     the validation whose weights were kept, counted from 1
    """

    model: keras.Model
    weights: dict[str, F32]
    history: list[dict[str, float]]
    kept: int
    stopped: StopReason

    @property
    def summary(self) -> str:
        """Which weights were kept, the last interval, and why training ended."""
        kept, last = (interval_name(self.history[index]) for index in (self.kept - 1, -1))
        return f"kept the weights of {kept}; last: {last}; stopped by: {self.stopped}"


def fit(
    spec: NetworkSpec,
    training: TrainingConfig,
    train: Sequence[Segment],
    validation: Sequence[Segment],
    scaling: Scaling,
    work_dir: Path,
    reporter: Reporter,
    resume: bool = False,
) -> FitResult:
    """Train until the limit is reached, until ``patience`` validations brought no better loss, or until Ctrl-C.

    The limit is ``training.max_updates`` or else ``training.epochs``.  Without validation segments the training loss
    decides which weights are best.  Checkpoints are written to ``work_dir``; ``resume`` continues from the last one,
    with the same result as a training without interruption.
    Raises DataError when the segments contain nothing to train on or the loss diverges, ConfigError when ``resume``
    finds no checkpoint or one of another training, KeyboardInterrupt when Ctrl-C came before the first validation.
    """
    run = TrainingRun(spec, training, train, validation, scaling, work_dir)
    if resume:
        run.restore()
    reporter.on_start(training.max_updates or training.epochs, "update" if training.max_updates else "epoch")
    try:
        return run.run(reporter)
    finally:
        reporter.close()


class Snapshot(NamedTuple):
    """State and arrays after an interval: one object, so that an interruption cannot separate them."""

    state: TrainingState
    arrays: Arrays


class TrainingRun:
    """One training: the trainer, its data, and its progress."""

    def __init__(
        self,
        spec: NetworkSpec,
        training: TrainingConfig,
        train: Sequence[Segment],
        validation: Sequence[Segment],
        scaling: Scaling,
        work_dir: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Arrange the data and build the network; arguments as in `fit`, ``clock`` in seconds."""
        self.spec = spec
        self.training = training
        self.work_dir = work_dir
        self.clock = clock
        table = join_segments(train)
        tables = [table]
        self.schedule = TrainingSchedule(spec, training, table, scaling)
        self.validation: tuple[SegmentTable, BatchPlan] | None = None
        if any(len(segment) for segment in validation):
            tables.append(join_segments(validation))
            self.validation = tables[1], self.schedule.validation_plan(tables[1])
        _check_labels(spec, tables)
        _check_horizon(spec, table)
        self.trainer = Trainer(spec, training, scaling, class_weights(spec, table))
        state = TrainingState(fingerprint=fingerprint(spec, training, scaling, table))
        self.last = self.saved = Snapshot(state, Arrays([], []))
        self.saved_at: float | None = None

    def run(self, reporter: Reporter) -> FitResult:
        """Train interval by interval.  Raises KeyboardInterrupt when no interval is finished yet."""
        log = TensorBoardLog(self.training.tensorboard)
        stopped = self._stop_reason()
        try:
            while stopped is None:
                row = self._interval(reporter)
                stopped = self._stop_reason()
                log.write(row)
                reporter.on_validation(row)
        except KeyboardInterrupt:
            if not self.last.state.kept:
                raise
            stopped = "interrupted"
        finally:
            self._save()
            log.close()
        state, arrays = self.last
        _assign(self.trainer.trainable, arrays.kept)
        return FitResult(
            model=self.trainer.networks.plain,
            weights=network_weights(self.trainer.networks.plain),
            history=state.history,
            kept=state.kept,
            stopped=stopped,
        )

    def restore(self) -> None:
        """Continue from the checkpoint in ``work_dir``."""
        state, arrays = load_checkpoint(self.work_dir, self.last.state.fingerprint)
        self.last = self.saved = Snapshot(state, arrays)
        _assign(self.trainer.variables, arrays.variables)
        self.trainer.state = arrays.state

    def _stop_reason(self) -> StopReason | None:
        state = self.last.state
        if len(state.history) - state.kept >= self.training.patience:
            return "patience"
        return self.schedule.finished(state.cursor)

    def _interval(self, reporter: Reporter) -> dict[str, float]:
        """Train one interval, validate, keep the weights if they are better, write a checkpoint when it is due."""
        began, before = time.perf_counter(), self.last.state
        rate = self.schedule.learning_rate(before.cursor)
        cursor, totals = self._train(reporter)
        trained_on = before.trained_on[0] + float(totals.sums[1]), before.trained_on[1] + float(totals.sums[3])
        if cursor.epoch or self.schedule.finished(cursor):
            _check_trained(self.spec, *trained_on)
        row = {"epoch": self.schedule.epochs(cursor)}
        if not self.schedule.validates_each_epoch:
            row["updates"] = float(cursor.updates)
        row |= {"learning_rate": rate} | _known_means(totals, self.spec)
        if self.validation is not None:
            means = self.trainer.validate(self.schedule.validation_batches(*self.validation)).means(self.spec)
            row |= {f"val_{name}": value for name, value in means.items()}
        row["seconds"] = time.perf_counter() - began
        self._update_snapshot(row, cursor, trained_on)
        return row

    def _train(self, reporter: Reporter) -> tuple[Cursor, Totals]:
        """Train to the end of the interval, which may lie in a later epoch; return its cursor and the loss sums."""
        cursor, sums = self.last.state.cursor, np.zeros(5)
        total, done = self.schedule.updates_left_in_interval(cursor), 0

        def on_batch(loss: float) -> None:
            nonlocal done
            done += 1
            reporter.on_batch(done, total, loss)

        while True:
            if not cursor.batch:
                self.trainer.drop_state()
            count = self.schedule.next_updates(cursor)
            batches, rates = self.schedule.batches(cursor, count), self.schedule.learning_rates(cursor, count)
            sums += self.trainer.train(batches, rates, on_batch).sums
            cursor = self.schedule.advance(cursor, count)
            if self.schedule.interval_ends(cursor):
                return cursor, Totals(sums)

    def _update_snapshot(self, row: dict[str, float], cursor: Cursor, trained_on: tuple[float, float]) -> None:
        old, loss = self.last.state, row.get("val_loss", row.get("loss"))
        state = msgspec.structs.replace(old, cursor=cursor, history=[*old.history, row], trained_on=trained_on)
        kept = self.last.arrays.kept
        better = old.kept_loss is None or (loss is not None and loss < old.kept_loss)
        if better or not self.training.restore_best_weights:
            state = msgspec.structs.replace(state, kept_loss=loss, kept=len(state.history))
            kept = self.trainer.validated_weights()
        variables = [variable.numpy() for variable in self.trainer.variables]
        self.last = Snapshot(state, Arrays(variables, kept, self.trainer.state if cursor.batch else None))
        if self.saved_at is None or self.clock() - self.saved_at >= SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint of the last finished interval, unless it is already on disk."""
        if self.last is not self.saved:
            save_checkpoint(self.work_dir, *self.last)
            self.saved, self.saved_at = self.last, self.clock()


def _known_means(totals: Totals, spec: NetworkSpec) -> dict[str, float]:
    """The mean losses of an interval, without those of a head for which no sample counted."""
    row = totals.means(spec)
    absent = set()
    if spec.forecast is not None and not totals.sums[1]:
        absent |= {"loss", "loss_forecast"}
    if spec.classes is not None and not totals.sums[3]:
        absent |= {"loss", "loss_classes", "accuracy"}
    return {name: value for name, value in row.items() if name not in absent}


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _check_labels(spec: NetworkSpec, tables: Sequence[SegmentTable]) -> None:
    labels = 0 if spec.classes is None else len(spec.classes.labels)
    largest = max(int(table.label.max()) for table in tables)
    if spec.classes is not None and largest >= labels:
        msg = f"label index {largest}: expected -1..{labels - 1}, there are {labels} labels"
        raise DataError(msg)


def _check_horizon(spec: NetworkSpec, table: SegmentTable) -> None:
    longest = int((table.stop - table.start).max())
    if spec.forecast is not None and longest <= spec.forecast.horizon:
        msg = (
            f"the longest segment between two resets has {longest} samples: model.forecast.horizon "
            f"(now {spec.forecast.horizon}) must be smaller"
        )
        raise DataError(msg)


def _check_trained(spec: NetworkSpec, forecasts: float, labelled: float) -> None:
    if spec.forecast is not None and not forecasts:
        raise DataError(
            "no forecast has a truth to compare with: segments between two resets must be longer than"
            f" model.forecast.horizon (now {spec.forecast.horizon}) and training.warm_up together"
        )
    if spec.classes is not None and not labelled:
        raise DataError(
            "no training sample has a known label: check input.label, model.classes.labels and training.warm_up"
        )
