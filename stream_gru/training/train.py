"""Train: from recordings to a verified bundle.

files ─▶ split ─▶ condition ─▶ fit ─▶ export ─▶ parity gate ─▶ calibrate ─▶ evaluate as a stream ─▶ bundle
"""

from __future__ import annotations

import math
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np

from stream_gru import __version__
from stream_gru.config import Config, DataConfig, ModelConfig
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.errors import ConfigError
from stream_gru.model.bundle import (
    FORMAT_VERSION,
    KERAS,
    MAX_FILE_BYTES,
    REPORT,
    TFLITE,
    Bundle,
    check_target,
    write_bundle,
)
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.keras.litert_graph import export_tflite
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.model.manifest import Channel, Embedding, EngineParity, Manifest, weight_shapes
from stream_gru.model.parity import BLOCK_STEPS, SegmentStarts, check_parity, column_scaling, pad_segment_starts
from stream_gru.pipeline.conditioning.spec import ConditioningSpec
from stream_gru.training.calibrate import calibrate, measure_warm_up
from stream_gru.training.checkpoint import require_checkpoint
from stream_gru.training.evaluation.baselines import find_season, fit_linear_ar
from stream_gru.training.evaluation.evaluate import Baselines, StreamedRecording, evaluate, stream_recording
from stream_gru.training.evaluation.scores import Scores
from stream_gru.training.fit import FitResult, fit
from stream_gru.training.progress import Reporter
from stream_gru.training.report import render_report
from stream_gru.training.splits import (
    Scaling,
    Segment,
    Splits,
    check_label_count,
    check_segments,
    class_labels,
    measure_scaling,
    segments_of,
    split,
)

# Recorded steps on which all engines are compared.
_PARITY_STEPS = 16_384
_ENGINE = "litert"
# Size of the flatbuffer, the largest file, without the weights.
_GRAPH_BYTES = 256 * 1024

Log = Callable[[str], None]


@dataclass(frozen=True)
class TrainResult:
    """A bundle on disk, its scores and the training that made it."""

    bundle: Bundle
    scores: Scores
    fitted: FitResult


def train(config: Config, out: Path, work_dir: Path, reporter: Reporter, log: Log, resume: bool = False) -> TrainResult:
    """Train as configured and write the bundle to ``out``.

    Raises ConfigError, DataError (unusable recordings), ParityError (engines disagree: nothing is written), BundleError
    (``out`` exists and is not a bundle), KeyboardInterrupt (before the first validation).
    """
    data, model = _tables(config)
    check_target(out)
    if resume:
        require_checkpoint(work_dir)
    batch = read_files(data.files, Fields.of(config.input, config.channel))
    log(f"read {len(batch):,} rows of {len(batch.stream_names)} streams, {batch.received - len(batch):,} rejected")
    splits = split(batch, config.split)
    labels = [] if model.classes is None else class_labels(splits.train, model.classes.labels, data.ignore_labels)
    check_label_count(model, labels)
    spec = NetworkSpec.from_config(model, config.channel, labels)
    rules = _rules(config)
    train_segments, validation_segments = (
        segments_of(part, rules, labels) for part in (splits.train, splits.validation)
    )
    log(
        f"split: {len(splits.train):,} rows for training ({len(train_segments)} segments without a reset),"
        f" {len(splits.validation):,} for validation, {len(splits.test):,} for the test"
    )
    check_segments(config.training, train_segments, log)
    scaling = measure_scaling(train_segments, model.scaling, spec.numeric_index)
    manifest = _manifest(config, spec, train_segments)
    _check_size(manifest)
    fitted = fit(spec, config.training, train_segments, validation_segments, scaling, work_dir, reporter, resume)
    log(f"{fitted.summary}; exporting")
    tflite = export_tflite(manifest, fitted.weights)
    parity = _parity(manifest, fitted, tflite, [*validation_segments, *train_segments])
    draft = Bundle(out, msgspec.structs.replace(manifest, parity=parity), fitted.weights, tflite)
    draft = _calibrated(draft, splits, validation_segments, config)
    scores, streamed = evaluate(draft, splits.test, _baselines(draft, config, train_segments, scaling), _ENGINE)
    final = draft.with_manifest(scores=msgspec.to_builtins(scores), created=_now())
    report = render_report(final.manifest, scores, streamed, fitted.history, fitted.kept)
    extra = {TFLITE: tflite, KERAS: _keras_bytes(fitted), REPORT: report}
    return TrainResult(write_bundle(out, final.manifest, fitted.weights, extra), scores, fitted)


def _tables(config: Config) -> tuple[DataConfig, ModelConfig]:
    """The tables that training requires.  Raises ConfigError."""
    if config.data is None or config.model is None:
        raise ConfigError("expected the tables [data] and [model] for training")
    return config.data, config.model


def _rules(config: Config) -> ConditioningSpec:
    """Conditioning for training, without windows: batches cut them."""
    data, model = _tables(config)
    limits = [(channel.min, channel.max, channel.categories) for channel in config.channel]
    return ConditioningSpec.build(config.conditioning, data.period_s, limits, model.calendar, window=0)


def _manifest(config: Config, spec: NetworkSpec, segments: list[Segment]) -> Manifest:
    """The manifest before training: no warm-up, calibration, parity or scores yet."""
    data, model = _tables(config)
    windowed = config.training.regime == "windowed"
    layers = spec.manifest_layers()
    return Manifest(
        format_version=FORMAT_VERSION,
        model_id="",
        created=_now(),
        versions={
            "stream-gru": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("keras", "tensorflow", "numpy")},
        },
        regime=config.training.regime,
        window=config.training.window if windowed else None,
        period_s=data.period_s,
        input=config.input,
        conditioning=config.conditioning,
        channels=_channels(config, segments),
        calendar=model.calendar,
        layers=layers,
        forecast=spec.forecast,
        classes=spec.classes,
        state_size=sum(layer.state_size for layer in layers),
        warm_up=config.training.window - 1 if windowed and config.training.window_loss == "last" else 0,
        calibration=None,
        parity=[],
        scores={},
        files={},
        ignore_labels=data.ignore_labels,
        embeddings=[Embedding(channel=one.channel, units=one.units) for one in model.embedding],
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _check_size(manifest: Manifest) -> None:
    """Raise ConfigError when a file of the bundle would exceed the size that readers accept."""
    size = _GRAPH_BYTES + 4 * sum(math.prod(shape) for shape in weight_shapes(manifest).values())
    if size > MAX_FILE_BYTES:
        units = ", ".join(str(layer.units) for layer in manifest.layers)
        raise ConfigError(
            f"model.layer.units (now {units}): expected a bundle whose files have at most {MAX_FILE_BYTES:,} bytes,"
            f" got about {size:,}; a smaller model.forecast.horizon helps too"
        )


def _channels(config: Config, segments: list[Segment]) -> list[Channel]:
    count = len(config.channel)
    x = np.concatenate([segment.x[:, :count] for segment in segments])
    observed = np.concatenate([segment.observed for segment in segments])
    low, high = np.where(observed, x, np.inf).min(axis=0), np.where(observed, x, -np.inf).max(axis=0)
    return [
        Channel(
            name=channel.name,
            seen_min=float(low[index]),
            seen_max=float(high[index]),
            unit=channel.unit,
            column=channel.column,
            min=channel.min,
            max=channel.max,
            categories=channel.categories,
        )
        for index, channel in enumerate(config.channel)
    ]


def _parity(manifest: Manifest, fitted: FitResult, tflite: bytes, segments: list[Segment]) -> list[EngineParity]:
    """Compare all engines with Keras' output for the longest segment and for the starts of other segments.

    About `_PARITY_STEPS` steps in all, some of them reserved for the others however long the longest segment is.
    """
    longest = max(range(len(segments)), key=lambda index: len(segments[index]))
    x = segments[longest].x[:_PARITY_STEPS]
    # Compiled, which is many times faster than calling the model.
    expected = np.asarray(fitted.model.predict_on_batch(x[None]), np.float32)[0]
    engine = load_engine("keras", Bundle(Path(), manifest, fitted.weights, None))
    states = [engine.initial_state(1)[0]]
    for first in range(0, len(x) - BLOCK_STEPS, BLOCK_STEPS):
        states.append(engine.scan(x[first : first + BLOCK_STEPS], states[-1])[1])
    short = None
    others = [segment.x for index, segment in enumerate(segments) if index != longest]
    if others:
        padded, length = pad_segment_starts(others, max(_PARITY_STEPS - len(x), _PARITY_STEPS // 8))
        short = SegmentStarts(padded, length, np.asarray(fitted.model.predict_on_batch(padded), np.float32))
    return check_parity(manifest, fitted.weights, tflite, expected, x, states=np.stack(states), starts=short)


def _calibrated(draft: Bundle, splits: Splits, segments: list[Segment], config: Config) -> Bundle:
    """Add residual quantiles and warm-up, measured on the validation part."""
    streamed = stream_recording(draft, splits.validation, _ENGINE)
    calibration = calibrate(draft, streamed, splits.validation, _ENGINE)
    manifest = draft.manifest
    if manifest.regime == "stateful":
        unit, _ = column_scaling(manifest, draft.weights)
        error = _typical_error(draft, streamed)
        warm_up = measure_warm_up(load_engine(_ENGINE, draft), segments, manifest.forecast_size, unit, error)
        draft = draft.with_manifest(warm_up=max(warm_up, config.training.warm_up))
    return draft.with_manifest(calibration=calibration)


def _typical_error(draft: Bundle, streamed: StreamedRecording) -> float:
    """Mean absolute forecast error of the validation part, in scaled units."""
    if draft.manifest.forecast is None:
        return 1.0
    scale = draft.weights["scaling/scale"][draft.manifest.target_index]
    error = np.abs(streamed.truth - streamed.forecast) / scale[:, None]
    return float(np.nanmean(error)) if np.isfinite(error).any() else 1.0


def _baselines(draft: Bundle, config: Config, segments: list[Segment], scaling: Scaling) -> Baselines:
    """Fit the baselines on the training part, as the network was."""
    manifest = draft.manifest
    labels = np.concatenate([segment.label for segment in segments])
    majority = int(np.bincount(labels[labels >= 0]).argmax()) if (labels >= 0).any() else 0
    if manifest.forecast is None:
        return Baselines(majority=majority)
    targets, horizon = manifest.target_index, manifest.forecast.horizon
    x = [segment.x for segment in segments]
    return Baselines(
        season_steps=find_season([part[:, targets] for part in x], manifest.period_s),
        linear_ar=fit_linear_ar(x, scaling.mean, scaling.scale, targets, horizon, manifest.numeric_index),
        majority=majority,
    )


def _keras_bytes(fitted: FitResult) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / KERAS
        fitted.model.save(path)
        return path.read_bytes()
