"""The training step: one update on one batch, with the state carried to the next batch.

`Trainer.train` takes any number of batches; the trainer carries the state until a batch resets it or
`Trainer.drop_state` drops it.  Gradients stop at the border of a batch.

Source: truncated back-propagation through time, Williams and Peng 1990; clipping, Pascanu, Mikolov and Bengio 2013;
averaged weights, Polyak and Juditsky 1992.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from stream_gru.config.train_schema import TrainingConfig
from stream_gru.core.errors import DataError
from stream_gru.core.types import F32
from stream_gru.model.keras.network import build_networks
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.batches import Batch
from stream_gru.training.loss import Loss, Totals
from stream_gru.training.segments import Scaling

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
