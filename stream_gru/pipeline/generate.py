"""Autoregressive generation: the outputs of a model are its next inputs.

    primer ──▶ Pipeline.process ──▶ outputs ──▶ next samples ──▶ Generated
                      ▲                              │
                      └──────────────────────────────┘

The samples go through `Pipeline.process`, so regime, warm-up, calendar and limits apply as for live data.
`stream_gru.pipeline.sampling` decides which outputs are fed back.

The streams continue from their state in the pipeline and keep their last one.  The last generated sample is not applied
yet: it is the primer of a continuation (`Generated.last`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import ConfigError, DataError
from stream_gru.core.timestamps import LIMIT_NS
from stream_gru.core.types import F64, I32, I64, STREAM_ID, PredictionBatch, SampleBatch
from stream_gru.model.manifest import Manifest
from stream_gru.pipeline.pipeline import Pipeline, conditioning_spec
from stream_gru.pipeline.sampling import CategorySampler, FeedbackKind, ForecastFeedback, NextInput, feedback_kind


@dataclass(frozen=True, slots=True)
class Generated:
    """N samples of each of G streams.

    ``samples``        N * G rows: row ``n * G + g`` is step n of stream g.  For categories, the label of a sample is
                       the category after it, none for the last one.
    ``probabilities``  (N, G) float64 probability of each drawn category at temperature 1 (of the first one of a stream
                       without primer: 1 / categories); None for forecasts
    ``clipped``        number of forecasts outside their channel's range
    """

    samples: SampleBatch
    probabilities: F64 | None
    clipped: int

    @property
    def log_probability(self) -> F64 | None:
        """Natural logarithm of the probability of each stream's drawn sequence, (G,); None for forecasts."""
        if self.probabilities is None:
            return None
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities).sum(axis=0)

    @property
    def last(self) -> SampleBatch:
        """The last sample of each stream, not yet applied by the pipeline: the primer of a continuation."""
        return self.samples.take(slice(len(self.samples) - len(self.samples.stream_names), None))


def generate(
    pipeline: Pipeline,
    primer: SampleBatch | None,
    steps: int,
    *,
    streams: Sequence[str] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Generated:
    """Apply a primer, then generate ``steps`` samples of each stream, one period apart.

    ``streams``: which streams of the primer to continue (None: all); without a primer, names of new streams, each
    starting with a uniformly drawn category at 1970-01-01T00:00:00Z.  ``temperature`` t: categories are drawn from
    p ** (1 / t), renormalised; 0 takes the most likely one.  ``seed``: equal seeds give equal samples.
    Raises ConfigError for a model whose outputs cannot be its inputs and for arguments out of range, DataError when the
    last sample of the primer is dropped and for outputs that are not finite.
    """
    manifest = pipeline.manifest
    kind = feedback_kind(manifest)
    _check_arguments(kind, steps, temperature, seed)
    if primer is None:
        start = _new_streams(pipeline, kind, ("generated",) if streams is None else tuple(streams))
    else:
        start = _apply_primer(pipeline, primer, streams)
    period_ns = conditioning_spec(manifest).period_ns
    if int(start.time_ns.max()) + steps * period_ns >= LIMIT_NS:
        raise ConfigError(f"steps: expected event times before the year 2116, got {steps:,} steps")
    next_input: NextInput
    if kind == "categories":
        next_input = CategorySampler(start.streams, manifest.channels[0].categories, temperature, seed)
    else:
        next_input = ForecastFeedback(manifest)
    batches: list[SampleBatch] = []
    outputs, index = start.outputs, np.arange(len(start.streams), dtype=np.int32)
    for step in range(1, steps + 1):
        if batches:
            outputs = _last_outputs(pipeline, batches[-1])
        values = next_input.next_values(outputs)
        time_ns = start.time_ns + step * period_ns
        batches.append(SampleBatch(start.streams, index, time_ns, values, episode=start.episode))
    samples = concatenate(batches, len(manifest.channels))
    if isinstance(next_input, CategorySampler) and manifest.classes is not None:
        label = np.append(samples.values[len(index) :, 0], np.full(len(index), -1)).astype(np.int32)
        samples = replace(samples, label=label, labels=tuple(manifest.classes.labels))
    return Generated(samples, next_input.probabilities(), next_input.clipped)


def prompt(manifest: Manifest, text: str, streams: Sequence[str]) -> SampleBatch:
    """A primer of one category per character, for each of ``streams``, starting at 1970-01-01T00:00:00Z.

    Raises ConfigError for a character that is not a label of the model, and as `feedback_kind` does.
    """
    if feedback_kind(manifest) != "categories" or manifest.classes is None:
        raise ConfigError("prompt: expected a model of categories, got one of quantities; use samples as a primer")
    code_of = {label: code for code, label in enumerate(manifest.classes.labels)}
    unknown = next((char for char in text if char not in code_of), None)
    if unknown is not None or not text:
        raise ConfigError(f"prompt: expected characters that are labels of the model, got {unknown or text!r}")
    codes = np.array([code_of[char] for char in text], np.float32)
    times = np.arange(len(text), dtype=np.int64) * conditioning_spec(manifest).period_ns
    one = SampleBatch(("prompt",), np.zeros(len(text), np.int32), times, codes[:, None])
    return copies(one, streams)


def copies(primer: SampleBatch, streams: Sequence[str]) -> SampleBatch:
    """Copy the samples of a primer's only stream to each of ``streams``.  Raises ConfigError for several streams."""
    found = np.unique(primer.stream_index)
    if found.size != 1:
        names = ", ".join(primer.stream_names[index] for index in found[:5])
        raise ConfigError(f"streams: expected a primer of one stream to copy, got {names or 'none'}")
    rows = np.tile(np.arange(len(primer)), len(streams))
    stream: I32 = np.repeat(np.arange(len(streams), dtype=np.int32), len(primer))
    return replace(primer.take(rows), stream_names=tuple(streams), stream_index=stream)


@dataclass(frozen=True, slots=True)
class _Start:
    """G streams before the first generated sample; ``outputs`` None: no sample was applied."""

    streams: tuple[str, ...]
    time_ns: I64
    outputs: PredictionBatch | None
    episode: I64 | None


def _new_streams(pipeline: Pipeline, kind: FeedbackKind, streams: tuple[str, ...]) -> _Start:
    """New streams without a sample; their time is one period before 1970."""
    if kind == "forecast":
        raise ConfigError("primer: expected samples to start from, got none (quantities have no default first value)")
    if not streams or len(set(streams)) != len(streams):
        raise ConfigError(f"streams: expected distinct names, at least one, got {list(streams)}")
    for name in streams:
        if not STREAM_ID.fullmatch(name):
            raise ConfigError(f"streams: expected 1 to 128 of the characters {STREAM_ID.pattern}, got {name!r:.80}")
        if name in pipeline.table:
            raise ConfigError(f"streams: {name!r} already has a state; use its last sample as primer, or another name")
    before = np.full(len(streams), -conditioning_spec(pipeline.manifest).period_ns, np.int64)
    return _Start(streams, before, None, None)


def _apply_primer(pipeline: Pipeline, primer: SampleBatch, streams: Sequence[str] | None) -> _Start:
    """Apply the primer; generation continues from the last outputs of its streams."""
    present = [primer.stream_names[index] for index in np.unique(primer.stream_index)]
    names = tuple(present if streams is None else dict.fromkeys(streams))
    if not names or not set(names) <= set(present):
        raise ConfigError(f"streams: expected some of the primer's, {present[:5]}, got {list(names)[:5]}")
    index_of = {name: index for index, name in enumerate(names)}
    index = np.array([index_of.get(name, -1) for name in primer.stream_names], np.int32)[primer.stream_index]
    wanted = index >= 0
    outputs = _last_outputs(pipeline, replace(primer.take(wanted), stream_names=names, stream_index=index[wanted]))
    slots = [pipeline.table.slot(name) for name in names]
    episode = None if primer.episode is None else pipeline.table["episode"][slots]
    return _Start(names, outputs.time_ns, outputs, episode)


def _last_outputs(pipeline: Pipeline, batch: SampleBatch) -> PredictionBatch:
    """Process a batch; return the output of each stream's last sample, in the order of ``batch.stream_names``.

    Raises DataError when such a sample was dropped.
    """
    out = pipeline.process(batch)
    last = np.full(len(batch.stream_names), -1, np.int64)
    np.maximum.at(last, out.stream_index, np.arange(len(out)))
    newest = pipeline.table["max_event_ns"]
    for name, row in zip(batch.stream_names, last.tolist(), strict=True):
        # A sample dropped for its values has still advanced the stream's largest event time.
        if row < 0 or newest[pipeline.table.slot(name)] != out.time_ns[row]:
            dropped = ", ".join(f"{n:,} {reason.text}" for reason, n in sorted(out.dropped.items()))
            raise DataError(f"primer: stream {name!r}: expected its last sample to be applied, dropped: {dropped}")
    return out.take(last)


def _check_arguments(kind: FeedbackKind, steps: int, temperature: float, seed: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps: expected at least 1, got {steps}")
    if seed < 0:
        raise ConfigError(f"seed: expected a number of at least 0, got {seed}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"temperature: expected a finite number of at least 0, got {temperature}")
    if kind == "forecast" and temperature != 1:
        raise ConfigError(f"temperature: expected none for forecasts, where nothing is drawn, got {temperature:g}")
