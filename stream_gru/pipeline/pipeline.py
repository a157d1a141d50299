"""The pipeline: the one road that live data, replays and evaluations take.

    SampleBatch ──▶ condition ──▶ advance ──▶ score ──▶ PredictionBatch
                    order, gaps    engine:      truths, intervals
                    resets, NaN    step, scan
                        ▲            │ h            │
                        └────────────┴─ StateTable ─┘

`Pipeline.process` does no I/O, reads no clock and starts no thread: the same samples give the same outputs, whatever
batches they came in.  Sources, sinks, metrics and time belong to the callers.
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
    """Runs one model over any number of streams and remembers each one's state.

    ``engine``: a name (``auto, litert, numpy, onnx, keras``) or an `Engine`; ``interval_level``: nominal coverage of
    the intervals; ``interval_adapt_rate``: how fast they adapt, 0 turns adaptation off; ``max_streams``: samples of
    further streams are dropped; ``alarm``: which outputs are alarms, None for no rule.
    Raises ConfigError for an engine that cannot be loaded and for alarms that the model cannot raise, ValueError for an
    interval level outside 0..1.
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
            raise ValueError(f"interval_level: expected a share above 0 and below 1, got {interval_level}")
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
        # Rows of long horizons are large, and many a gateway has one device: grow as streams come.
        self.table = StateTable(self._columns(), capacity=1)
        self.row_schema = RowSchema.of(manifest, self.table.row_layout)  # what the rows of the table are
        self._taken_over: dict[RowSchema, Collection[str]] = {}

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that have a state."""
        return self.table.streams

    def process(self, batch: SampleBatch) -> PredictionBatch:
        """Apply a batch and return one output for each applied sample, in the order of arrival.

        Raises ValueError when ``batch.values`` is not (N, C) for this model's channels.
        """
        channels = len(self.manifest.channels)
        if batch.values.ndim != 2 or batch.values.shape[1] != channels:
            raise ValueError(f"values: expected shape (N, {channels}), got {batch.values.shape}")
        steps = condition(batch, self.table, self._conditioning, self._max_streams)
        hidden = self.table["h"]
        outputs, h = run_steps(self.engine, steps, hidden[steps.slot])
        hidden[steps.slot] = h
        self._reset_lost_states(steps, h)
        finite: Mask = np.logical_and.reduce(np.isfinite(outputs), axis=1)
        trusted = finite & (steps.row >= 0) & (steps.count > self.manifest.warm_up)
        forecast = lower = upper = misses = None
        if self._scorer is not None:
            forecast, lower, upper, misses = self._scorer.score(steps, outputs, trusted, self.table)
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
            resets=_count_resets(steps),
        )
        return replace(out, alarm=self.alarm.alarms(out)) if self.alarm else out

    def push(
        self, stream: str, time: datetime | str | float, values: Mapping[str, float | None] | Sequence[float | None]
    ) -> Prediction:
        """Apply one sample and return its output.

        ``time``: a datetime with a time zone, ISO 8601 text, or seconds since 1970-01-01 UTC; ``values``: by channel
        name, or in the bundle's order, in engineering units, None or NaN for missing.  A sample that was not applied
        comes back with ``dropped`` set.  Raises ValueError for unknown channels, an unreadable time or a bad stream id.
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

    def restore_stream(self, stream: str, form: RowSchema, row: bytes) -> bool:
        """Put a stream back that was stored as a row of ``form``; return whether its hidden state goes on.

        One of another model keeps what `RowSchema.compatible_columns` says and is reset before its next step, for
        `ResetReason.MODEL_CHANGED`.  Raises StateError when the row has not that form.
        """
        if form not in self._taken_over:
            self._taken_over = {form: form.compatible_columns(self.row_schema)}  # most rows have the same form
        wanted = self._taken_over[form]
        columns = split_row(form.columns, row)
        self.table.restore(stream, {name: columns[name] for name in wanted})
        same = form.model_id == self.manifest.model_id and len(wanted) == len(self.row_schema.columns)
        if not same:
            self.reset(stream, ResetReason.MODEL_CHANGED)
        return same

    def reset_damaged(self, stream: str, reason: ResetReason) -> None:
        """Have a stream that was there begin without a state: its first step says why."""
        self.table.restore(stream, {"pending_reset": np.array(reason, np.uint8)})
        self.table.mark_dirty(stream)

    def reset(self, stream: str | None = None, reason: ResetReason = ResetReason.COMMAND) -> int:
        """Reset one stream, or all, before their next sample; return how many.  Raises KeyError if unknown."""
        return request_reset(self.table, stream, reason)

    def stream_progress(self, limit: int) -> list[tuple[str, str | None, int]]:
        """At most ``limit`` streams, each with the event time of its last step (ISO 8601, None before) and its steps.

        May be asked from another thread than that of `process`: then a row may be half a batch old.
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
        """Return what forecasts were worth; None without a forecast head.  Raises KeyError for an unknown stream.

        Of one stream, since it began, wherever that was; else of all that this pipeline has scored.
        """
        return None if self._scorer is None else self._scorer.totals(self.table, stream)

    def _columns(self) -> list[Column]:
        scoring = [] if self._scorer is None else self._scorer.columns()
        hidden = Column("h", (self.engine.state_size,), np.float32, 0)
        return [hidden, *conditioning_columns(len(self.manifest.channels)), *scoring]

    def _reset_lost_states(self, steps: Steps, h: F32) -> None:
        """A state that is lost after a stream's last step is reset before its next one."""
        lost = steps.slot[non_finite_rows(h)]
        if lost.size:
            self.table["h"][lost] = self.engine.initial_state(1)[0]
            pending = self.table["pending_reset"]
            pending[lost[pending[lost] == ResetReason.NONE]] = ResetReason.NON_FINITE_STATE
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
    """What all outputs of a model have in common."""
    head, classes = manifest.forecast, manifest.classes
    return OutputSpec(
        model_id=manifest.model_id,
        targets=() if head is None else tuple(head.targets),
        horizon=0 if head is None else head.horizon,
        labels=() if classes is None else tuple(classes.labels),
        exclusive=classes is None or classes.activation != "sigmoid",
        level=level,
        warm_up=manifest.warm_up,
    )


def conditioning_spec(manifest: Manifest) -> ConditioningSpec:
    """The conditioning rules a model was trained with."""
    return ConditioningSpec.build(
        manifest.conditioning,
        manifest.period_s,
        [(channel.min, channel.max, channel.categories) for channel in manifest.channels],
        manifest.calendar,
        (manifest.window or 0) if manifest.regime == "windowed" else 0,
    )


def _output_order(steps: Steps) -> I64:
    """Steps that answer a sample, in the order in which the samples arrived."""
    real = np.flatnonzero(steps.row >= 0)
    return real if len(steps.slot) == 1 else real[np.argsort(steps.row[real], kind="stable")]


def _imputed(steps: Steps) -> I32:
    """Inserted steps before each sample plus channels held in it, (T,) int32."""
    new = steps.row < 0
    if steps.observed.all() and not new.any():
        return np.zeros(len(steps), np.int32)
    held = np.count_nonzero(~steps.observed, axis=1)
    held[new] = 0
    inserted = np.cumsum(new)
    real = np.flatnonzero(steps.row >= 0)
    held[real] += np.diff(inserted[real], prepend=0)
    return held.astype(np.int32)


def _visible_resets(steps: Steps) -> U8:
    """The reset to show at each sample: its own, or one that fell on a step inserted before it."""
    reset = steps.reset.copy()
    for index in np.flatnonzero((steps.reset > 0) & (steps.row < 0)):
        answer = index + int(np.argmax(steps.row[index:] >= 0))
        reset[answer] = reset[answer] or steps.reset[index]
    return reset


def _count_resets(steps: Steps) -> dict[ResetReason, int]:
    found = np.bincount(steps.reset)
    return {ResetReason(code): int(n) for code, n in enumerate(found) if n and code}


def _as_float(value: float | None) -> float:
    """A missing value as NaN, an integer too large for a float as infinite: both count as missing."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf
