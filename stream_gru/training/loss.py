"""The training loss, as TensorFlow operations on one batch; all errors in scaled units.

    total = forecast weight * forecast loss + classes weight * class loss + penalties

Each loss is a mean over the steps with weight whose truth was observed or whose label is known.

Source: Koenker and Bassett 1978 (pinball loss, Econometrica 46:33-50); Huber 1964 with delta = 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from stream_gru.core.types import F32, F64
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.segments import Scaling, SegmentTable


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
