"""Find the weights: rounds of updates, early stopping on a stream-wise validation loss, checkpoints on the way."""

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
from stream_gru.training.checkpoint import Arrays, Standing, fingerprint, load_checkpoint, save_checkpoint
from stream_gru.training.loss import Totals, class_weights
from stream_gru.training.progress import Reporter, named_round
from stream_gru.training.schedule import Course, Place
from stream_gru.training.segments import Plan, Rows, Run, Scaling, join_runs
from stream_gru.training.tensorboard import Curves
from stream_gru.training.train_step import Trainer

SAVE_EVERY_S = 5.0
"""A checkpoint is written at most so often; rounds may be shorter than writing one takes."""

Stopped = Literal["patience", "epochs", "max_updates", "interrupted"]


@dataclass(frozen=True)
class Fitted:
    """What training found.

    ``model``       the plain sequence model with the kept weights (`stream_gru.model.keras.network.Networks`)
    ``weights``     the same weights, named and laid out as in a bundle
    ``history``     one row a round: epoch (passes so far), updates (in all; only where rounds are not passes),
                    learning_rate, loss, loss_forecast, loss_classes, accuracy, the same with ``val_`` in front,
                    seconds.  Losses are in scaled units and without penalties
    ``best_round``  the round whose weights were kept, counted from 1
    """

    model: keras.Model
    weights: dict[str, F32]
    history: list[dict[str, float]]
    best_round: int
    stopped: Stopped

    @property
    def summary(self) -> str:
        """Which round was best, or is kept because it is the last, in words."""
        best, last = (named_round(self.history[index]) for index in (self.best_round - 1, -1))
        return f"kept: {best}; last: {last} (ended by: {self.stopped})"


def fit(
    spec: NetworkSpec,
    training: TrainingConfig,
    train: Sequence[Run],
    validation: Sequence[Run],
    scaling: Scaling,
    work_dir: Path,
    reporter: Reporter,
    resume: bool = False,
) -> Fitted:
    """Train until the budget is used up, until ``patience`` rounds brought nothing better, or until Ctrl-C.

    The budget is ``training.max_updates`` or else ``training.epochs``.  Without validation runs the training loss
    decides which round is best.  Checkpoints are written to ``work_dir``; ``resume`` goes on from the last one, with
    the result an uninterrupted training would have had.
    Raises DataError when the runs hold nothing to learn from or the loss diverges, ConfigError when ``resume`` finds
    no checkpoint or that of something else, KeyboardInterrupt when Ctrl-C came before anything was learnt.
    """
    fitting = Fitting(spec, training, train, validation, scaling, work_dir)
    if resume:
        fitting.restore()
    reporter.on_start(training.max_updates or training.epochs, "update" if training.max_updates else "epoch")
    try:
        return fitting.run(reporter)
    finally:
        reporter.close()


class Reached(NamedTuple):
    """What the last finished round has left: one object, so that no interruption comes between its parts."""

    standing: Standing
    arrays: Arrays


class Fitting:
    """One training: the trainer, its data, and how far it has come."""

    def __init__(
        self,
        spec: NetworkSpec,
        training: TrainingConfig,
        train: Sequence[Run],
        validation: Sequence[Run],
        scaling: Scaling,
        work_dir: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Lay out the data and build the network; arguments as in `fit`, ``clock`` in seconds."""
        self.spec = spec
        self.training = training
        self.work_dir = work_dir
        self.clock = clock
        rows = join_runs(train)
        parts: list[Rows] = [rows]
        self.course = Course(spec, training, rows, scaling)
        self.validation: tuple[Rows, Plan] | None = None
        if any(len(run) for run in validation):
            parts.append(join_runs(validation))
            self.validation = parts[1], self.course.measuring_plan(parts[1])
        _check_labels(spec, parts)
        _check_horizon(spec, rows)
        self.trainer = Trainer(spec, training, scaling, class_weights(spec, rows))
        standing = Standing(fingerprint=fingerprint(spec, training, scaling, rows))
        self.reached = self.saved = Reached(standing, Arrays([], []))
        self.saved_at: float | None = None

    def run(self, reporter: Reporter) -> Fitted:
        """Train round by round and return the best.  Raises KeyboardInterrupt when there is none yet."""
        curves = Curves(self.training.tensorboard)
        stopped: Stopped | None = self._finished()
        try:
            while stopped is None:
                row = self._round(reporter)
                stopped = self._finished()
                curves.write(row)
                reporter.on_round(row)
        except KeyboardInterrupt:
            if not self.reached.standing.best_round:
                raise
            stopped = "interrupted"
        finally:
            self._save()
            curves.close()
        standing, arrays = self.reached
        _assign(self.trainer.trainable, arrays.best)
        return Fitted(
            model=self.trainer.networks.plain,
            weights=network_weights(self.trainer.networks.plain),
            history=standing.history,
            best_round=standing.best_round,
            stopped=stopped,
        )

    def restore(self) -> None:
        """Go on from the checkpoint in ``work_dir``."""
        standing, arrays = load_checkpoint(self.work_dir, self.reached.standing.fingerprint)
        self.reached = self.saved = Reached(standing, arrays)
        _assign(self.trainer.variables, arrays.variables)
        self.trainer.carried = arrays.carried

    def _finished(self) -> Stopped | None:
        standing = self.reached.standing
        if len(standing.history) - standing.best_round >= self.training.patience:
            return "patience"
        return self.course.finished(standing.place)

    def _round(self, reporter: Reporter) -> dict[str, float]:
        """Train one round, measure, remember the best, write the checkpoint when it is time."""
        began, before = time.perf_counter(), self.reached.standing
        rate = self.course.rate(before.place)
        place, totals = self._train(reporter)
        learnt = before.learnt[0] + float(totals.sums[1]), before.learnt[1] + float(totals.sums[3])
        if place.epoch or self.course.finished(place):
            _check_learnt(self.spec, *learnt)
        row = {"epoch": self.course.epochs(place)}
        if not self.course.rounds_are_passes:
            row["updates"] = float(place.updates)
        row |= {"learning_rate": rate} | _seen_means(totals, self.spec)
        if self.validation is not None:
            measured = self.trainer.measure(self.course.measuring(*self.validation)).means(self.spec)
            row |= {f"val_{name}": value for name, value in measured.items()}
        row["seconds"] = time.perf_counter() - began
        self._remember(row, place, learnt)
        return row

    def _train(self, reporter: Reporter) -> tuple[Place, Totals]:
        """Train to the end of the round, which may lie in another pass; return where it ends and the sums."""
        place, sums = self.reached.standing.place, np.zeros(5)
        total, done = self.course.left_of_round(place), 0

        def on_batch(loss: float) -> None:
            nonlocal done
            done += 1
            reporter.on_batch(done, total, loss)

        while True:
            if not place.batch:
                self.trainer.forget()
            count = self.course.stretch(place)
            part = self.trainer.train(self.course.batches(place, count), self.course.rates(place, count), on_batch)
            sums += part.sums
            place = self.course.after(place, count)
            if self.course.round_ends(place):
                return place, Totals(sums)

    def _remember(self, row: dict[str, float], place: Place, learnt: tuple[float, float]) -> None:
        old, loss = self.reached.standing, row.get("val_loss", row.get("loss"))
        standing = msgspec.structs.replace(old, place=place, history=[*old.history, row], learnt=learnt)
        best = self.reached.arrays.best
        better = old.best_loss is None or (loss is not None and loss < old.best_loss)
        if better or not self.training.restore_best_weights:
            standing = msgspec.structs.replace(standing, best_loss=loss, best_round=len(standing.history))
            best = self.trainer.kept()
        variables = [variable.numpy() for variable in self.trainer.variables]
        self.reached = Reached(standing, Arrays(variables, best, self.trainer.carried if place.batch else None))
        if self.saved_at is None or self.clock() - self.saved_at >= SAVE_EVERY_S:
            self._save()

    def _save(self) -> None:
        """Write a checkpoint of the last finished round, unless it stands there already."""
        if self.reached is not self.saved:
            save_checkpoint(self.work_dir, *self.reached)
            self.saved, self.saved_at = self.reached, self.clock()


def _seen_means(totals: Totals, spec: NetworkSpec) -> dict[str, float]:
    """The means of a round; without what the round had nothing to learn from."""
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


def _check_labels(spec: NetworkSpec, parts: Sequence[Rows]) -> None:
    labels = 0 if spec.classes is None else len(spec.classes.labels)
    largest = max(int(rows.label.max()) for rows in parts)
    if spec.classes is not None and largest >= labels:
        msg = f"label index {largest}: expected -1..{labels - 1}, there are {labels} labels"
        raise DataError(msg)


def _check_horizon(spec: NetworkSpec, rows: Rows) -> None:
    longest = int((rows.stop - rows.start).max())
    if spec.forecast is not None and longest <= spec.forecast.horizon:
        msg = (
            f"the longest run between two resets has {longest} samples: model.forecast.horizon "
            f"(now {spec.forecast.horizon}) must be smaller"
        )
        raise DataError(msg)


def _check_learnt(spec: NetworkSpec, forecasts: float, labelled: float) -> None:
    if spec.forecast is not None and not forecasts:
        msg = (
            f"no forecast could be compared with a truth: runs must be longer than the horizon {spec.forecast.horizon}"
        )
        raise DataError(f"{msg} and training.warm_up together")
    if spec.classes is not None and not labelled:
        msg = "no training sample has a known label: check input.label, model.classes.labels and training.warm_up"
        raise DataError(msg)
