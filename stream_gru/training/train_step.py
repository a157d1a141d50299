"""The training loop's engine: one step on one batch, with the state carried to the next.

`Trainer.train` takes any stretch of batches; the carried state stays with the trainer until a batch resets it or
`Trainer.forget` drops it.  Gradients stop at the border of a batch.

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
from stream_gru.training.loss import Loss, Totals
from stream_gru.training.segments import Batch, Scaling

OnBatch = Callable[[float], None]


class Trainer:
    """A network, its optimizer and the state it carries."""

    def __init__(self, spec: NetworkSpec, training: TrainingConfig, scaling: Scaling, class_weights: F32) -> None:
        """Build everything; weights come from the seed of ``training`` (a layer's own seed goes first)."""
        keras.utils.set_random_seed(training.seed)
        self.spec = spec
        self.training = training
        self.networks = build_networks(spec, scaling.mean, scaling.scale)
        self.loss = Loss(spec, scaling, class_weights)
        self.optimizer = _optimizer(training)
        self.optimizer.build(self.networks.trainer.trainable_variables)
        averaged = self.trainable if training.ema_momentum else []
        self._averages = [tf.Variable(variable.value, trainable=False) for variable in averaged]
        self._carried: Any = None
        self._step = _Drawn(self._train_step)
        self._measure = _Drawn(self._measure_step)

    def train(self, batches: Iterable[Batch], rates: Iterable[float], on_batch: OnBatch) -> Totals:
        """Improve the weights on each batch in turn, each with its learning rate; ``on_batch`` hears the loss.

        Raises DataError when the loss is not finite.
        """
        sums = np.zeros(5)
        for batch, rate in zip(batches, rates, strict=True):
            if self._carried is None:
                self._carried = tf.zeros((len(batch.reset), self.spec.state_size))
            self._carried, loss, part = self._step(_tensors(batch), self._carried, tf.constant(rate, tf.float32))
            sums += part.numpy()
            value = float(loss)
            if not math.isfinite(value):
                self._diverged(value, f"after {int(self.optimizer.iterations.numpy()):,} updates")
            on_batch(value)
        return Totals(sums)

    def measure(self, batches: Iterable[Batch]) -> Totals:
        """Take the losses as a stream would meet them: no dropout, the state carried, nothing learnt."""
        sums, state = np.zeros(5), None
        with self._averaged():
            for batch in batches:
                state = tf.zeros((len(batch.reset), self.spec.state_size)) if state is None else state
                state, part = self._measure(_tensors(batch), state)
                sums += part.numpy()
        if not np.isfinite(sums).all():
            self._diverged(float(sums.sum()), "on the validation part")
        return Totals(sums)

    def kept(self) -> list[F32]:
        """The weights that are measured and kept: their moving average where one is asked for."""
        with self._averaged():
            return [variable.numpy() for variable in self.trainable]

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the moving average of the weights in their place for a while."""
        if not self._averages:
            yield
            return
        own = [variable.numpy() for variable in self.trainable]
        try:
            for variable, average in zip(self.trainable, self._averages, strict=True):
                variable.assign(average)
            yield
        finally:
            for variable, value in zip(self.trainable, own, strict=True):
                variable.assign(value)

    def forget(self) -> None:
        """Drop the carried state; the next batch may have another number of lanes."""
        self._carried = None

    @property
    def carried(self) -> F32 | None:
        """The state that the next batch goes on from, (B, S); None for the initial one."""
        return None if self._carried is None else np.array(self._carried.numpy())

    @carried.setter
    def carried(self, state: F32 | None) -> None:
        self._carried = None if state is None else tf.constant(state)

    @property
    def variables(self) -> list[Any]:
        """Everything that changes in training: weights, seeds of dropout, optimizer; in a fixed order."""
        return [*self.networks.trainer.variables, *self.optimizer.variables, *self._averages]

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
        self.optimizer.apply(tape.gradient(total, self.trainable), self.trainable)
        self._average()
        return heads["state"], total, sums

    def _average(self) -> None:
        """Move the averages towards the weights.

        Decision: the decay rises with the number of updates, (1 + n) / (10 + n) up to ``training.ema_momentum``; with a
        constant one a short training would keep little but its first weights.
        """
        done = tf.cast(self.optimizer.iterations, tf.float32) - 1.0  # before this update
        decay = tf.minimum(self.training.ema_momentum, (1.0 + done) / (10.0 + done))
        decay = tf.where(done > 0.0, decay, 0.0)
        for variable, average in zip(self.trainable, self._averages, strict=False):
            average.assign(decay * average + (1.0 - decay) * variable)

    def _measure_step(self, batch: Sequence[Any], state: Any) -> tuple[Any, Any]:
        heads = self._run(batch, state, training=False)
        return heads["state"], self.loss(heads, batch)[1]

    def _run(self, batch: Sequence[Any], state: Any, training: bool) -> Any:
        """One pass from the carried state; a reset replaces the state, as multiplying a NaN by 0 would keep it."""
        state = tf.stop_gradient(tf.where(batch[5][:, None], 0.0, state))
        with _unrolled(self.networks.trainer, self.spec):
            return self.networks.trainer([batch[0], state], training=training)

    def _diverged(self, loss: float, where: str) -> NoReturn:
        clip = self.training.clip_norm
        msg = (
            f"the loss became {loss} {where}: training diverged; lower training.learning_rate "
            f"(now {self.training.learning_rate:g}), set training.clip_norm to 1 or less (now {clip:g}), "
            "and look for values far outside a channel's usual range"
        )
        raise DataError(msg)


class _Drawn:
    """A step as graphs, one for each size of a batch.

    They are looked up here by the size of the batch alone: `tf.function` compares the types of all arguments at every
    call, which costs as much as a step of a small network.
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
    return kinds[training.optimizer](training.learning_rate, global_clipnorm=training.clip_norm or None)


@contextmanager
def _unrolled(model: Any, spec: NetworkSpec) -> Iterator[None]:
    """Unroll the layers that ask for it while a graph is drawn; the saved model still takes any number of steps."""
    layers = [model.get_layer(f"recurrent_{i}") for i, layer in enumerate(spec.layers) if layer.unroll]
    for layer in layers:
        layer.unroll = True
    try:
        yield
    finally:
        for layer in layers:
            layer.unroll = False
