"""The pipeline: live data, replays and evaluations all go through `Pipeline.process`.

    SampleBatch ──▶ condition ──▶ run_steps ──▶ score ──▶ alarms ──▶ PredictionBatch
       (N, C)      order, values    engine:       truths,    AlarmRule      (M outputs)
                   gaps, windows   step, scan    intervals
                        ▲              ▲            ▲
                        │              │ h          │
                        └────────── StateTable ─────┘     one row per stream

    condition   `conditioning.condition`   samples become steps; late, duplicate and unusable ones are dropped
    run_steps   `stepping`                 the engine advances the hidden state h of each stream
    score       `scoring`                  past forecasts meet their truth; intervals adapt
    alarms      `alarms`                   which outputs need attention

`Pipeline.process` does no I/O, reads no clock and starts no thread: the same samples give the same outputs, however
they are cut into batches.  Sources, sinks, metrics and time belong to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

import numpy as np

from stream_gru.core.prediction import Prediction, prediction_at
from stream_gru.core.protocols import Engine
from stream_gru.core.timestamps import format_iso, to_ns
from stream_gru.core.types import (
    F32,
    I32,
    I64,
    STREAM_ID,
    U8,
    Mask,
    OutputSpec,
    PredictionBatch,
    ResetReason,
    SampleBatch,
    Status,
)
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.manifest import Manifest
from stream_gru.pipeline.alarms import AlarmRule
from stream_gru.pipeline.conditioning.condition import condition, request_reset
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.pipeline.conditioning.spec import ConditioningSpec, conditioning_columns
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.pipeline.scoring import Scorer, ScoreTotals
from stream_gru.pipeline.state_table import Column, StateTable, split_row
from stream_gru.pipeline.stepping import non_finite_rows, run_steps


class Pipeline:
    """Runs one model on any number of streams and keeps the state of each.

    ``engine``               a name (``auto, litert, numpy, onnx, keras``) or an `Engine`
    ``interval_level``       nominal coverage of the forecast intervals, between 0 and 1
    ``interval_adapt_rate``  step size of their adaptation, 0 turns it off
    ``max_streams``          samples of further streams are dropped
    ``alarm``                which outputs are alarms; None: outputs have no alarm column

    Not for use from two threads at once.  Raises ConfigError when the engine cannot be loaded or the model cannot raise
    the alarms, ValueError for an interval level out of range.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: str | Engine = "auto",
        *,
        interval_level: float = 0.9,
        interval_adapt_rate: float = 0.5,
        max_streams: int = 1000,
        alarm: AlarmRule | None = None,
    ) -> None:
        if not 0 < interval_level < 1:
            raise ValueError(f"interval_level: expected a number above 0 and below 1, got {interval_level}")
        manifest = bundle.manifest
        self.alarm = alarm or AlarmRule()
        self.alarm.check(manifest)
        self.manifest = manifest
        self.engine = load_engine(engine, bundle) if isinstance(engine, str) else engine
        self.spec = output_spec(manifest, interval_level)
        self._conditioning = conditioning_spec(manifest)
        self._max_streams = max_streams
        self._rate = interval_adapt_rate
        self._scorer = (
            None
            if manifest.forecast is None
            else Scorer(manifest, bundle.weights["scaling/scale"], interval_level, interval_adapt_rate)
        )
        # Rows of long horizons are large and many gateways have one device: start with one row and grow.
        self.table = StateTable(self._columns(), capacity=1)
        self.row_schema = RowSchema.of(manifest, self.table.row_layout)
        self._compatible: dict[RowSchema, Collection[str]] = {}

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that have a state."""
        return self.table.streams

    def process(self, batch: SampleBatch) -> PredictionBatch:
        """Apply N samples; return one output for each applied sample, in order of arrival.

        ``batch.values``: (N, C) in the model's order of channels, engineering units.  The result also counts dropped
        samples and resets by reason.  Raises ValueError when the values are not (N, C).
        """
        channels = len(self.manifest.channels)
        if batch.values.ndim != 2 or batch.values.shape[1] != channels:
            raise ValueError(f"values: expected shape (N, {channels}), got {batch.values.shape}")
        steps = condition(batch, self.table, self._conditioning, self._max_streams)
        hidden = self.table["h"]
        outputs, h = run_steps(self.engine, steps, hidden[steps.slot])
        hidden[steps.slot] = h
        self._reset_non_finite_states(steps, h)
        finite: Mask = np.logical_and.reduce(np.isfinite(outputs), axis=1)
        scorable = finite & (steps.row >= 0) & (steps.count > self.manifest.warm_up)
        forecast = lower = upper = misses = None
        if self._scorer is not None:
            forecast, lower, upper, misses = self._scorer.score(steps, outputs, scorable, self.table)
        order = _output_order(steps)
        imputed = _imputed(steps)[order]
        applied = steps.row[order]
        probabilities = outputs[:, self.manifest.forecast_size :] if self.manifest.classes else None
        calibrated = self._scorer is not None and self._scorer.calibrated
        out = PredictionBatch(
            spec=self.spec,
            stream_names=batch.stream_names,
            stream_index=batch.stream_index[applied],
            time_ns=batch.time_ns[applied],
            device_seq=None if batch.device_seq is None else batch.device_seq[applied],
            status=self._status(steps.count[order], imputed, finite[order]),
            reset=_visible_resets(steps)[order],
            steps_since_reset=steps.count[order],
            imputed=imputed,
            forecast=None if forecast is None else forecast[order],
            lower=lower[order] if calibrated and lower is not None else None,
            upper=upper[order] if calibrated and upper is not None else None,
            consecutive_misses=misses[order] if calibrated and misses is not None else None,
            probabilities=None if probabilities is None else probabilities[order],
            label=self._true_labels(batch, applied),
            dropped=steps.dropped,
            drops=steps.drops,
            resets=_count_resets(steps),
        )
        return replace(out, alarm=self.alarm.alarms(out)) if self.alarm else out

    def push(
        self, stream: str, time: datetime | str | float, values: Mapping[str, float | None] | Sequence[float | None]
    ) -> Prediction:
        """Apply one sample and return its output.

        ``time``: a datetime with a time zone, ISO 8601 text, or seconds since 1970-01-01 UTC; ``values``: by channel
        name, or in the bundle's order, in engineering units, None or NaN for missing.  The output of a sample that was
        not applied has ``dropped`` set.  Raises ValueError for unknown channels, an invalid time or stream id.
        """
        if not isinstance(stream, str) or not STREAM_ID.fullmatch(stream):
            raise ValueError(f"stream: expected 1 to 128 of the characters {STREAM_ID.pattern}, got {stream!r:.80}")
        with np.errstate(over="ignore"):
            row = np.array([self._value_row(values)], np.float64).astype(np.float32)
        batch = SampleBatch((stream,), np.zeros(1, np.int32), np.array([to_ns(time)], np.int64), row)
        out = self.process(batch)
        return prediction_at(out, 0) if len(out) else Prediction.of_dropped(batch, out)

    def swap(
        self,
        bundle: Bundle,
        engine: str | Engine = "auto",
        *,
        interval_level: float | None = None,
        interval_adapt_rate: float | None = None,
        max_streams: int | None = None,
        alarm: AlarmRule | None = None,
    ) -> int:
        """Replace the bundle or options between two batches; return how many streams are reset.

        None keeps an option; an empty `AlarmRule` turns alarms off.  With the same model every state is kept.  With
        another one each stream is reset at its next sample (`ResetReason.MODEL_CHANGED`) and its scores restart; it
        keeps its event time, and its last values where channels and period are equal.  Where states are stored, call it
        directly after a commit: changes before it count as stored.
        Raises ConfigError as the constructor does and changes nothing then.
        """
        old = self.row_schema
        fresh = Pipeline(
            bundle,
            engine,
            interval_level=self.spec.level if interval_level is None else interval_level,
            interval_adapt_rate=self._rate if interval_adapt_rate is None else interval_adapt_rate,
            max_streams=self._max_streams if max_streams is None else max_streams,
            alarm=self.alarm if alarm is None else alarm,
        )
        if fresh.row_schema == old:
            fresh.table = self.table
        else:
            for stream in self.streams:
                fresh.restore_stream(stream, old, self.table.row(stream))
        if fresh._scorer is not None and self._scorer is not None and old.model_id == fresh.row_schema.model_id:
            fresh._scorer.adopt_totals(self._scorer)
        self.__dict__.update(fresh.__dict__)
        return len(self.streams) if old.model_id != self.row_schema.model_id else 0

    def restore_stream(self, stream: str, schema: RowSchema, row: bytes) -> bool:
        """Restore a stream from its stored row; return whether its hidden state is kept.

        A stream of another model keeps the `RowSchema.compatible_columns` and is reset before its next step
        (`ResetReason.MODEL_CHANGED`).  Raises StateError when the row does not fit ``schema``.
        """
        if schema not in self._compatible:
            self._compatible = {schema: schema.compatible_columns(self.row_schema)}  # most rows have one schema
        kept = self._compatible[schema]
        columns = split_row(schema.columns, row)
        self.table.restore(stream, {name: columns[name] for name in kept})
        same_model = schema.model_id == self.manifest.model_id and len(kept) == len(self.row_schema.columns)
        if not same_model:
            self.reset(stream, ResetReason.MODEL_CHANGED)
        return same_model

    def reset_damaged(self, stream: str, reason: ResetReason) -> None:
        """Start a stream whose stored state is unusable from the initial state; its first output has ``reason``."""
        self.table.restore(stream, {"pending_reset": np.array(reason, np.uint8)})
        self.table.mark_dirty(stream)

    def reset(self, stream: str | None = None, reason: ResetReason = ResetReason.COMMAND) -> int:
        """Reset one stream, or all (None), before their next sample; return how many.  Raises KeyError if unknown."""
        return request_reset(self.table, stream, reason)

    def stream_progress(self, limit: int) -> list[tuple[str, str | None, int]]:
        """Name, event time of the last step (ISO 8601, None before it) and steps since reset of ``limit`` streams.

        Safe from another thread than that of `process`; a row may then be from the middle of a batch.
        """
        table, streams = self.table, self.table.streams[:limit]
        slots = [table.slot(stream) for stream in streams]
        times, steps = table["applied_ns"][slots], table["steps_since_reset"][slots]
        texts = format_iso(np.maximum(times, 0))
        return [
            (stream, text if time > 0 else None, int(count))
            for stream, text, time, count in zip(streams, texts, times, steps, strict=True)
        ]

    def scores(self, stream: str | None = None) -> ScoreTotals | None:
        """Sums of the scored forecasts; None without a forecast head.  Raises KeyError for an unknown stream.

        With ``stream``: since that stream's first sample, earlier processes included; else of all streams since this
        pipeline was made.
        """
        return None if self._scorer is None else self._scorer.totals(self.table, stream)

    def _columns(self) -> list[Column]:
        scoring = [] if self._scorer is None else self._scorer.columns()
        hidden = Column("h", (self.engine.state_size,), np.float32, 0)
        return [hidden, *conditioning_columns(len(self.manifest.channels)), *scoring]

    def _reset_non_finite_states(self, steps: Steps, h: F32) -> None:
        """Reset a state that is not finite after its stream's last step before the next one."""
        slots = steps.slot[non_finite_rows(h)]
        if slots.size:
            self.table["h"][slots] = self.engine.initial_state(1)[0]
            pending = self.table["pending_reset"]
            pending[slots[pending[slots] == ResetReason.NONE]] = ResetReason.NON_FINITE_STATE
        self.table["steps_since_reset"][steps.slot] = steps.count[steps.start + steps.length - 1]

    def _status(self, count: I64, imputed: I32, finite: Mask) -> U8:
        status = np.where(imputed > 0, np.uint8(Status.IMPUTED), np.uint8(Status.OK))
        status[count <= self.manifest.warm_up] = Status.WARMING
        status[~finite] = Status.DEGRADED
        return status

    def _true_labels(self, batch: SampleBatch, applied: I64) -> I32 | None:
        if batch.label is None or self.manifest.classes is None:
            return None
        return batch.label_codes(self.manifest.classes.labels)[applied]

    def _value_row(self, values: Mapping[str, float | None] | Sequence[float | None]) -> list[float]:
        names = [channel.name for channel in self.manifest.channels]
        if isinstance(values, Mapping):
            unknown = sorted(set(values) - set(names))
            if unknown:
                raise ValueError(f"values: expected channels among {names}, got {unknown[0]!r}")
            values = [values.get(name) for name in names]
        if len(values) != len(names):
            raise ValueError(f"values: expected {len(names)} numbers ({', '.join(names)}), got {len(values)}")
        return [_as_float(value) for value in values]


def output_spec(manifest: Manifest, level: float) -> OutputSpec:
    """Properties that all outputs of a model share; ``level``: nominal coverage of the intervals."""
    head, classes = manifest.forecast, manifest.classes
    units = {channel.name: channel.unit for channel in manifest.channels}
    return OutputSpec(
        model_id=manifest.model_id,
        targets=() if head is None else tuple(head.targets),
        horizon=0 if head is None else head.horizon,
        labels=() if classes is None else tuple(classes.labels),
        exclusive=classes is None or classes.activation != "sigmoid",
        level=level,
        warm_up=manifest.warm_up,
        units=() if head is None else tuple(units.get(target, "") for target in head.targets),
        period_s=manifest.period_s,
        intervals=head is not None and (manifest.calibration is not None or bool(head.quantiles)),
    )


def conditioning_spec(manifest: Manifest) -> ConditioningSpec:
    """Conditioning rules of a model, as in its training."""
    return ConditioningSpec.build(
        manifest.conditioning,
        manifest.period_s,
        [(channel.min, channel.max, channel.categories) for channel in manifest.channels],
        manifest.calendar,
        (manifest.window or 0) if manifest.regime == "windowed" else 0,
    )


def _output_order(steps: Steps) -> I64:
    """Indices of the steps of samples, (M,), in order of arrival; inserted steps are left out."""
    real = np.flatnonzero(steps.row >= 0)
    return real if len(steps.slot) == 1 else real[np.argsort(steps.row[real], kind="stable")]


def _imputed(steps: Steps) -> I32:
    """Inserted steps before each sample plus imputed channel values in it, (T,) int32."""
    inserted = steps.row < 0
    if steps.observed.all() and not inserted.any():
        return np.zeros(len(steps), np.int32)
    imputed = np.count_nonzero(~steps.observed, axis=1)
    imputed[inserted] = 0
    so_far = np.cumsum(inserted)
    real = np.flatnonzero(steps.row >= 0)
    imputed[real] += np.diff(so_far[real], prepend=0)
    return imputed.astype(np.int32)


def _visible_resets(steps: Steps) -> U8:
    """Reset to report at each sample, (T,) uint8: its own, or that of a step inserted before it."""
    reset = steps.reset.copy()
    for index in np.flatnonzero((steps.reset > 0) & (steps.row < 0)):
        sample = index + int(np.argmax(steps.row[index:] >= 0))
        reset[sample] = reset[sample] or steps.reset[index]
    return reset


def _count_resets(steps: Steps) -> dict[ResetReason, int]:
    found = np.bincount(steps.reset)
    return {ResetReason(code): int(n) for code, n in enumerate(found) if n and code}


def _as_float(value: float | None) -> float:
    """None as NaN, an integer beyond the range of a float as infinite: both count as missing."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf
