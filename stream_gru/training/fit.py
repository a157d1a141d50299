"""Find the weights: epochs over a plan, early stopping on a stream-wise validation loss, a checkpoint each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from stream_gru.config.schema import TrainingConfig
from stream_gru.errors import DataError
from stream_gru.training.checkpoint import Arrays, Standing, fingerprint, load_checkpoint, save_checkpoint
from stream_gru.training.jitter import jittered
from stream_gru.training.lanes import stream_plan, training_plan
from stream_gru.training.loop import Trainer
from stream_gru.training.loss import class_weights
from stream_gru.training.network import network_weights
from stream_gru.training.progress import Reporter
from stream_gru.training.runs import Batch, Plan, Rows, Run, Scaling, batches, join_runs
from stream_gru.training.spec import NetworkSpec
from stream_gru.training.windows import window_plan
from stream_gru.types import F32

Stopped = Literal["patience", "epochs", "interrupted"]


@dataclass(frozen=True)
class Fitted:
    """What training found.

    ``model``       the plain sequence model with the best weights (`stream_gru.training.network.Networks`)
    ``weights``     the same weights, named and laid out as in a bundle
    ``history``     one row an epoch: epoch, learning_rate, loss, loss_forecast, loss_classes, accuracy, the same with
                    ``val_`` in front, seconds.  Losses are in scaled units and without penalties
    ``best_epoch``  counted from 1
    """

    model: keras.Model
    weights: dict[str, F32]
    history: list[dict[str, float]]
    best_epoch: int
    stopped: Stopped


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
    """Train until ``training.epochs``, until ``patience`` epochs brought nothing better, or until Ctrl-C.

    Without validation runs the training loss decides which epoch is best.  A checkpoint is written to ``work_dir``
    after each epoch; ``resume`` goes on from it, with the result an uninterrupted training would have had.
    Raises DataError when the runs hold nothing to learn from or the loss diverges, ConfigError when ``resume`` finds
    no checkpoint or that of something else, KeyboardInterrupt when Ctrl-C came before anything was learnt.
    """
    fitting = Fitting(spec, training, train, validation, scaling, work_dir)
    if resume:
        fitting.restore()
    reporter.on_start(training.epochs)
    try:
        return fitting.run(reporter)
    finally:
        reporter.close()


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
    ) -> None:
        """Lay out the data and build the network; arguments as in `fit`."""
        self.spec = spec
        self.training = training
        self.scaling = scaling
        self.work_dir = work_dir
        self.rows = join_runs(train)
        self.validation = join_runs(validation) if any(len(run) for run in validation) else None
        _check_labels(spec, [rows for rows in (self.rows, self.validation) if rows is not None])
        _check_horizon(spec, self.rows)
        self.trainer = Trainer(spec, training, scaling, class_weights(spec, self.rows))
        self.standing = Standing(fingerprint=fingerprint(spec, training, scaling, self.rows))
        self.best: Sequence[Any] = []

    def run(self, reporter: Reporter) -> Fitted:
        """Train epoch by epoch and return the best.  Raises KeyboardInterrupt when there is none yet."""
        stopped: Stopped | None = self._finished()
        try:
            while stopped is None:
                self._epoch(reporter)
                stopped = self._finished()
        except KeyboardInterrupt:
            if not self.standing.best_epoch:
                raise
            stopped = "interrupted"
        _assign(self.trainer.trainable, self.best)
        return Fitted(
            model=self.trainer.networks.plain,
            weights=network_weights(self.trainer.networks.plain),
            history=self.standing.history,
            best_epoch=self.standing.best_epoch,
            stopped=stopped,
        )

    def restore(self) -> None:
        """Go on from the checkpoint in ``work_dir``."""
        self.standing, arrays = load_checkpoint(self.work_dir, self.standing.fingerprint)
        _assign(self.trainer.variables, arrays.variables)
        self.best = arrays.best

    def _finished(self) -> Stopped | None:
        if self.standing.epoch - self.standing.best_epoch >= self.training.patience:
            return "patience"
        return "epochs" if self.standing.epoch >= self.training.epochs else None

    def _epoch(self, reporter: Reporter) -> None:
        """Train one epoch, measure, remember the best, write the checkpoint."""
        began = time.perf_counter()
        row = {"epoch": self.standing.epoch + 1.0, "learning_rate": next(self._rates(1))} | self._train(reporter)
        if self.validation is not None:
            measured = self.trainer.measure(self._batches(self.validation, self._validation_plan(self.validation)))
            row |= {f"val_{name}": value for name, value in measured.means(self.spec).items()}
        row["seconds"] = time.perf_counter() - began
        self._remember(row)
        reporter.on_epoch(row)

    def _train(self, reporter: Reporter) -> dict[str, float]:
        plan = self._training_plan()
        done = 0

        def on_batch(loss: float) -> None:
            nonlocal done
            done += 1
            reporter.on_batch(done, len(plan), loss)

        self.trainer.forget()
        rows = self._jittered()
        totals = self.trainer.train(self._batches(rows, plan), self._rates(len(plan)), on_batch)
        _check_learnt(self.spec, totals.sums[1], totals.sums[3])
        return totals.means(self.spec)

    def _remember(self, row: dict[str, float]) -> None:
        self.standing.epoch += 1
        self.standing.history.append(row)
        loss = row.get("val_loss", row["loss"])
        if self.standing.best_loss is None or loss < self.standing.best_loss:
            self.standing.best_loss, self.standing.best_epoch = loss, self.standing.epoch
            self.best = [variable.numpy() for variable in self.trainer.trainable]
        variables = [variable.numpy() for variable in self.trainer.variables]
        save_checkpoint(self.work_dir, self.standing, Arrays(variables, self.best))
        if self.training.tensorboard:
            _write_scalars(self.training.tensorboard, row)

    def _rates(self, batches_: int) -> Iterator[float]:
        """Learning rate of each batch of the coming epoch; the cosine falls to 0 over all epochs."""
        for number in range(batches_):
            share = (self.standing.epoch + number / batches_) / self.training.epochs
            cosine = 0.5 * (1.0 + math.cos(math.pi * share))
            yield self.training.learning_rate * (cosine if self.training.schedule == "cosine" else 1.0)

    def _training_plan(self) -> Plan:
        """Plan the coming epoch from the seed and its number alone, so that a resumed training repeats it."""
        t, rng = self.training, np.random.default_rng([self.training.seed, self.standing.epoch])
        if t.regime == "windowed":
            return window_plan(self.rows, t.window, t.stride, t.batch_size, t.window_loss, t.warm_up, rng)
        return training_plan(self.rows, t.lanes, t.steps, t.warm_up, rng)

    def _jittered(self) -> Rows:
        """The training rows of the coming epoch, from the seed and its number alone."""
        t, rng = self.training, np.random.default_rng([self.training.seed, self.standing.epoch, 1])
        return jittered(self.rows, self.scaling, t.gain_jitter, t.offset_jitter, rng)

    def _validation_plan(self, rows: Rows) -> Plan:
        t = self.training
        if t.regime == "windowed":
            return window_plan(rows, t.window, t.stride, t.batch_size, t.window_loss, t.warm_up, None)
        return stream_plan(rows, t.lanes, t.steps, t.warm_up)

    def _batches(self, rows: Rows, plan: Plan) -> Iterator[Batch]:
        horizon = 0 if self.spec.forecast is None else self.spec.forecast.horizon
        return batches(rows, plan, self.spec.target_index, horizon)


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


def _write_scalars(folder: str, row: dict[str, float]) -> None:
    """Append one epoch to the event files; `tf.summary.scalar` would need the tensorboard package to write them."""
    metadata = tf.compat.v1.SummaryMetadata(data_class=1)
    metadata.plugin_data.plugin_name = "scalars"
    writer = tf.summary.create_file_writer(folder)
    with writer.as_default(step=int(row["epoch"])):
        for name, value in row.items():
            if name != "epoch":
                tf.summary.write(name, tf.constant(value, tf.float32), metadata=metadata)
    writer.close()
