"""The training step: one update on one batch, with the state carried to the next batch; and its loss.

`Trainer.train` takes any number of batches; the trainer carries the state until a batch resets it or
`Trainer.drop_state` drops it.  Gradients stop at the border of a batch.

    total = forecast weight * forecast loss + classes weight * class loss + penalties

Each loss is a mean over the steps with weight whose truth was observed or whose label is known; errors are scaled.

Source: truncated back-propagation through time, Williams and Peng 1990; clipping, Pascanu, Mikolov and Bengio 2013;
averaged weights, Polyak and Juditsky 1992; pinball loss, Koenker and Bassett 1978 (Econometrica 46:33-50); Huber 1964
with delta = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from stream_gru.config.train_schema import TrainingConfig
from stream_gru.core.errors import DataError
from stream_gru.core.types import F32, F64
from stream_gru.model.keras.network import build_networks
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.batches import Batch
from stream_gru.training.splits import Scaling, SegmentTable

OnBatch = Callable[[float], None]


class Trainer:
    """A network, its optimizer and the carried state."""

    def __init__(self, spec: NetworkSpec, training: TrainingConfig, scaling: Scaling, class_weights: F32) -> None:
        """Build network and optimizer; weights come from ``training.seed``, or from a layer's own seed."""
        keras.utils.set_random_seed(training.seed)
        self.spec = spec
        self.training = training
        self.networks = build_networks(spec, scaling.mean, scaling.scale)
        self.loss = Loss(spec, scaling, class_weights)
        self.optimizer = _optimizer(training)
        self.optimizer.build(self.networks.trainer.trainable_variables)
        self._state: Any = None
        self._train = _GraphBySize(self._train_step)
        self._validate = _GraphBySize(self._validation_step)

    def train(self, batches: Iterable[Batch], rates: Iterable[float], on_batch: OnBatch) -> Totals:
        """Update the weights on each batch in turn, each with its learning rate; ``on_batch`` gets the loss.

        Raises DataError when the loss is not finite.
        """
        sums = np.zeros(5)
        for batch, rate in zip(batches, rates, strict=True):
            if self._state is None:
                self._state = tf.zeros((len(batch.reset), self.spec.state_size))
            self._state, loss, part = self._train(_tensors(batch), self._state, tf.constant(rate, tf.float32))
            sums += part.numpy()
            value = float(loss)
            if not math.isfinite(value):
                self._diverged(value, f"after {int(self.optimizer.iterations.numpy()):,} updates")
            on_batch(value)
        return Totals(sums)

    def validate(self, batches: Iterable[Batch]) -> Totals:
        """Measure the losses as in a live stream: no dropout, the state carried, no update.

        Raises DataError when a loss is not finite.
        """
        sums, state = np.zeros(5), None
        with self._averaged_weights():
            for batch in batches:
                state = tf.zeros((len(batch.reset), self.spec.state_size)) if state is None else state
                state, part = self._validate(_tensors(batch), state)
                sums += part.numpy()
        if not np.isfinite(sums).all():
            self._diverged(float(sums.sum()), "on the validation part")
        return Totals(sums)

    def validated_weights(self) -> list[F32]:
        """The weights that `validate` measures: their moving average with ``ema_momentum``, else the weights."""
        with self._averaged_weights():
            return [variable.numpy() for variable in self.trainable]

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Replace the weights by their moving average inside the block; without ``ema_momentum`` do nothing."""
        own = [variable.numpy() for variable in self.trainable] if self.optimizer.use_ema else []
        try:
            self.optimizer.finalize_variable_values(self.trainable)
            yield
        finally:
            for variable, value in zip(self.trainable, own, strict=False):
                variable.assign(value)

    def drop_state(self) -> None:
        """Drop the carried state; the next batch may have another number of lanes."""
        self._state = None

    @property
    def state(self) -> F32 | None:
        """The state that the next batch continues from, (B, S); None for the initial one."""
        return None if self._state is None else np.array(self._state.numpy())

    @state.setter
    def state(self, state: F32 | None) -> None:
        self._state = None if state is None else tf.constant(state)

    @property
    def variables(self) -> list[Any]:
        """Everything that changes in training: weights, seeds of dropout, optimizer; in a fixed order."""
        return [*self.networks.trainer.variables, *self.optimizer.variables]

    @property
    def trainable(self) -> list[Any]:
        """The weights."""
        return list(self.networks.trainer.trainable_variables)

    def _train_step(self, batch: Sequence[Any], state: Any, rate: Any) -> tuple[Any, Any, Any]:
        self.optimizer.learning_rate.assign(rate)
        with tf.GradientTape() as tape:
            heads = self._run(batch, state, training=True)
            total, sums = self.loss(heads, batch)
            total += tf.add_n([tf.zeros(()), *self.networks.trainer.losses])
        if self.optimizer.use_ema:
            self.optimizer.ema_momentum = self._ema_momentum()
        self.optimizer.apply(tape.gradient(total, self.trainable), self.trainable)
        return heads["state"], total, sums

    def _ema_momentum(self) -> Any:
        """Momentum of Keras' moving average at this update.

        Decision: it rises with the number n of updates, (1 + n) / (10 + n) up to ``training.ema_momentum``.  Keras
        keeps it constant, by which a short training would keep little but its first weights.
        """
        done = tf.cast(self.optimizer.iterations, tf.float32)
        return tf.minimum(self.training.ema_momentum, (1.0 + done) / (10.0 + done))

    def _validation_step(self, batch: Sequence[Any], state: Any) -> tuple[Any, Any]:
        heads = self._run(batch, state, training=False)
        return heads["state"], self.loss(heads, batch)[1]

    def _run(self, batch: Sequence[Any], state: Any, training: bool) -> Any:
        """Forward pass from the carried state; a reset replaces the state, as multiplying a NaN by 0 would keep it."""
        state = tf.stop_gradient(tf.where(batch[5][:, None], 0.0, state))
        with _unrolled(self.networks.trainer, self.spec):
            return self.networks.trainer([batch[0], state], training=training)

    def _diverged(self, loss: float, where: str) -> NoReturn:
        clip = self.training.clip_norm
        msg = (
            f"the loss became {loss} {where}: training diverged; lower training.learning_rate "
            f"(now {self.training.learning_rate:g}), set training.clip_norm to 1 or less (now {clip:g}), "
            "and check the recordings for values far outside a channel's usual range"
        )
        raise DataError(msg)


class _GraphBySize:
    """A step as TensorFlow graphs, one for each batch size.

    Only the batch size selects the graph: `tf.function` compares the types of all arguments at every call, which takes
    as long as a step of a small network.
    """

    def __init__(self, step: Callable[..., Any]) -> None:
        self._function = tf.function(step)
        self._graphs: dict[tuple[int, ...], Any] = {}

    def __call__(self, batch: Sequence[Any], *rest: Any) -> Any:
        size = tuple(batch[0].shape)
        graph = self._graphs.get(size)
        if graph is None:
            graph = self._graphs[size] = self._function.get_concrete_function(batch, *rest)
        return graph(batch, *rest)


def _tensors(batch: Batch) -> tuple[Any, ...]:
    fields = (batch.x, batch.ahead, batch.seen, batch.label, batch.weight, batch.reset)
    return tuple(tf.convert_to_tensor(value) for value in fields)


def _optimizer(training: TrainingConfig) -> Any:
    kinds = {
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "rmsprop": keras.optimizers.RMSprop,
        "sgd": keras.optimizers.SGD,
    }
    average = {"use_ema": True, "ema_momentum": training.ema_momentum} if training.ema_momentum else {}
    return kinds[training.optimizer](training.learning_rate, global_clipnorm=training.clip_norm or None, **average)


@contextmanager
def _unrolled(model: Any, spec: NetworkSpec) -> Iterator[None]:
    """Unroll the layers configured so while a graph is traced; the saved model still takes any number of steps."""
    layers = [model.get_layer(f"recurrent_{i}") for i, layer in enumerate(spec.layers) if layer.unroll]
    for layer in layers:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in layers:
            layer.unroll = False


@dataclass(frozen=True)
class Totals:
    """Loss sums over any number of batches, from which the means follow.

    ``sums`` (5,) float64: forecast loss, its count, class loss, its count, correctly classified steps.
    """

    sums: F64

    def means(self, spec: NetworkSpec) -> dict[str, float]:
        """``loss`` without penalties, and of the heads present ``loss_forecast``, ``loss_classes``, ``accuracy``."""
        forecast, forecasts, classes, labelled, right = self.sums.tolist()
        row = {"loss": 0.0}
        if spec.forecast is not None:
            row["loss_forecast"] = forecast / max(forecasts, 1.0)
            row["loss"] += spec.objective.forecast_weight * row["loss_forecast"]
        if spec.classes is not None:
            row["loss_classes"] = classes / max(labelled, 1.0)
            row["loss"] += spec.objective.classes_weight * row["loss_classes"]
            row["accuracy"] = right / max(labelled, 1.0)
        return row


def class_weights(spec: NetworkSpec, table: SegmentTable) -> F32:
    """Weight of each class (L,): 1, or balanced N / (L * count), so that all count the same; 0 if it never occurs."""
    labels = 0 if spec.classes is None else len(spec.classes.labels)
    if spec.objective.class_weights == "none":
        return np.ones(labels, np.float32)
    count = np.bincount(table.label[table.label >= 0], minlength=labels)
    return np.where(count > 0, count.sum() / (labels * np.maximum(count, 1)), 0.0).astype(np.float32)


class Loss:
    """The losses of the heads of one network; called while a graph is traced."""

    def __init__(self, spec: NetworkSpec, scaling: Scaling, weights: F32) -> None:
        """``weights`` (L,) of the classes, see `class_weights`."""
        self.spec = spec
        targets = list(spec.target_index)
        self.mean, self.scale = tf.constant(scaling.mean[targets]), tf.constant(scaling.scale[targets])
        self.weights = tf.constant(weights)

    def __call__(self, heads: Mapping[str, Any], batch: Sequence[Any]) -> tuple[Any, Any]:
        """Return the loss of the batch (scalar) and the sums of `Totals` (5,), both float32.

        ``heads``: outputs of the training model; ``batch``: the fields of `Batch` in their order.
        """
        x, ahead, seen, label, weight, _ = batch
        zero = tf.zeros(())
        forecast, forecasts, classes, labelled, right = (zero,) * 5
        if "forecast" in heads:
            truth, counts = self._truth(ahead, seen, weight, x.shape[1])
            forecast, forecasts = self._forecast(heads["forecast"], truth, counts)
        if "logits" in heads:
            classes, labelled, right = self._classes(heads["logits"], label, weight)
        objective = self.spec.objective
        total = objective.forecast_weight * forecast / tf.maximum(forecasts, 1.0)
        total += objective.classes_weight * classes / tf.maximum(labelled, 1.0)
        return total, tf.stack([forecast, forecasts, classes, labelled, right])

    def _truth(self, ahead: Any, seen: Any, weight: Any, steps: int) -> tuple[Any, Any]:
        """Scaled truths and their weights, both (B, T, D, H), from the rows after each step."""
        assert self.spec.forecast is not None  # noqa: S101 - for mypy
        index = np.arange(steps)[:, None] + np.arange(1, self.spec.forecast.horizon + 1)
        truth = tf.transpose(tf.gather((ahead - self.mean) / self.scale, index, axis=1), (0, 1, 3, 2))
        counts = tf.transpose(tf.gather(tf.cast(seen, tf.float32), index, axis=1), (0, 1, 3, 2))
        return truth, counts * weight[:, :, None, None]

    def _forecast(self, forecast: Any, truth: Any, counts: Any) -> tuple[Any, Any]:
        assert self.spec.forecast is not None  # noqa: S101 - for mypy
        quantiles = self.spec.forecast.quantiles
        shape = tf.shape(truth)
        error = truth[..., None] - tf.reshape(forecast, tf.concat([shape, [max(1, len(quantiles))]], axis=0))
        return tf.reduce_sum(self._pointwise(error, quantiles) * counts), tf.reduce_sum(counts)

    def _pointwise(self, error: Any, quantiles: list[float]) -> Any:
        """Loss of every error (B, T, D, H, Q), averaged over Q."""
        if quantiles:
            levels = tf.constant(quantiles, tf.float32)
            return tf.reduce_mean(tf.maximum(levels * error, (levels - 1.0) * error), axis=-1)
        error = error[..., 0]
        if self.spec.objective.forecast_loss == "mse":
            return tf.square(error)
        size = tf.abs(error)
        if self.spec.objective.forecast_loss == "mae":
            return size
        return tf.where(size <= 1.0, 0.5 * tf.square(error), size - 0.5)

    def _classes(self, logits: Any, label: Any, weight: Any) -> tuple[Any, Any, Any]:
        """Cross-entropy from the logits: the same number as from clipped probabilities, with a gradient everywhere."""
        assert self.spec.classes is not None  # noqa: S101 - for mypy
        known = tf.cast(label >= 0, tf.float32) * weight
        index = tf.maximum(label, 0)
        right = tf.cast(self._predicted_class(logits) == label, tf.float32)
        if self.spec.classes.activation == "softmax":
            entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(index, logits)
        elif self.spec.classes.activation == "logistic":
            entropy = tf.nn.sigmoid_cross_entropy_with_logits(tf.cast(index, tf.float32), logits[..., 0])
        else:
            target = tf.one_hot(index, len(self.spec.classes.labels))
            entropy = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(target, logits), axis=-1)
        weighted = entropy * known * tf.gather(self.weights, index)
        return tf.reduce_sum(weighted), tf.reduce_sum(known), tf.reduce_sum(right * known)

    def _predicted_class(self, logits: Any) -> Any:
        assert self.spec.classes is not None  # noqa: S101 - for mypy
        if self.spec.classes.activation == "logistic":
            return tf.cast(logits[..., 0] > 0.0, tf.int32)
        return tf.argmax(logits, axis=-1, output_type=tf.int32)
