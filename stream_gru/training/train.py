"""Train: recordings in, verified bundle out.

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
from stream_gru.connectors.dataset_reader import read_files
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
from stream_gru.training.data_checks import check_labels, check_runs
from stream_gru.training.evaluation.baselines import find_season, fit_linear_ar
from stream_gru.training.evaluation.evaluate import Baselines, Streamed, evaluate, stream_through
from stream_gru.training.evaluation.scores import Scores
from stream_gru.training.fit import Fitted, fit
from stream_gru.training.progress import Reporter
from stream_gru.training.report import render_report
from stream_gru.training.segments import Run, Scaling, measure_scaling
from stream_gru.training.splits import Parts, class_labels, runs_of, split

# Real samples on which all engines must agree; more would only repeat the question.
_PARITY_STEPS = 16_384
_ENGINE = "litert"
# What the flatbuffer, which is the largest file, holds besides the weights.
_GRAPH_BYTES = 256 * 1024

Say = Callable[[str], None]


@dataclass(frozen=True)
class Trained:
    """A bundle on disk and what was measured on the way."""

    bundle: Bundle
    scores: Scores
    fitted: Fitted


def train(config: Config, out: Path, work_dir: Path, reporter: Reporter, say: Say, resume: bool = False) -> Trained:
    """Carry out a training configuration and write the bundle to ``out``.

    Raises ConfigError, DataError (recordings that cannot be used), ParityError (engines disagree: nothing is written),
    BundleError (``out`` is something else than a bundle), KeyboardInterrupt (before anything was learnt).
    """
    data, model = _tables(config)
    check_target(out)
    if resume:
        require_checkpoint(work_dir)
    batch = read_files(data.files, Fields.of(config.input, config.channel))
    say(f"read {len(batch):,} rows of {len(batch.stream_names)} streams, {batch.received - len(batch):,} rejected")
    parts = split(batch, config.split)
    labels = [] if model.classes is None else class_labels(parts.train, model.classes.labels, data.ignore_labels)
    check_labels(model, labels)
    spec = NetworkSpec.from_config(model, config.channel, labels)
    rules = _rules(config)
    train_runs, validation_runs = runs_of(parts.train, rules, labels), runs_of(parts.validation, rules, labels)
    say(
        f"split: {len(parts.train):,} rows to train ({len(train_runs)} runs without a reset),"
        f" {len(parts.validation):,} to validate, {len(parts.test):,} to test"
    )
    check_runs(config.training, train_runs, say)
    scaling = measure_scaling(train_runs, model.scaling, spec.numeric_index)
    manifest = _manifest(config, spec, train_runs)
    _check_size(manifest)
    fitted = fit(spec, config.training, train_runs, validation_runs, scaling, work_dir, reporter, resume)
    say(f"{fitted.summary}; exporting")
    tflite = export_tflite(manifest, fitted.weights)
    parity = _parity(manifest, fitted, tflite, [*validation_runs, *train_runs])
    draft = Bundle(out, msgspec.structs.replace(manifest, parity=parity), fitted.weights, tflite)
    draft = _calibrated(draft, parts, validation_runs, config)
    scores, streamed = evaluate(draft, parts.test, _baselines(draft, config, train_runs, scaling), _ENGINE)
    final = draft.with_manifest(scores=msgspec.to_builtins(scores), created=_now())
    report = render_report(final.manifest, scores, streamed, fitted.history, fitted.best_round)
    extra = {TFLITE: tflite, KERAS: _keras_bytes(fitted), REPORT: report}
    return Trained(write_bundle(out, final.manifest, fitted.weights, extra), scores, fitted)


def _tables(config: Config) -> tuple[DataConfig, ModelConfig]:
    """The tables without which there is nothing to train.  Raises ConfigError."""
    if config.data is None or config.model is None:
        raise ConfigError("expected the tables [data] and [model] for training")
    return config.data, config.model


def _rules(config: Config) -> ConditioningSpec:
    """Conditioning for training: windows are cut by training itself."""
    data, model = _tables(config)
    limits = [(channel.min, channel.max, channel.categories) for channel in config.channel]
    return ConditioningSpec.build(config.conditioning, data.period_s, limits, model.calendar, window=0)


def _manifest(config: Config, spec: NetworkSpec, runs: list[Run]) -> Manifest:
    """The contract, before anything was measured."""
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
        channels=_channels(config, runs),
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
    """Raise ConfigError when a file of the bundle would be larger than any reader accepts."""
    size = _GRAPH_BYTES + 4 * sum(math.prod(shape) for shape in weight_shapes(manifest).values())
    if size > MAX_FILE_BYTES:
        units = ", ".join(str(layer.units) for layer in manifest.layers)
        raise ConfigError(
            f"model.layer.units (now {units}): expected a bundle whose files have at most {MAX_FILE_BYTES:,} bytes,"
            f" got about {size:,}; a smaller forecast.horizon makes it smaller too"
        )


def _channels(config: Config, runs: list[Run]) -> list[Channel]:
    count = len(config.channel)
    low = np.min([np.where(run.observed, run.x[:, :count], np.inf).min(axis=0) for run in runs], axis=0)
    high = np.max([np.where(run.observed, run.x[:, :count], -np.inf).max(axis=0) for run in runs], axis=0)
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


def _parity(manifest: Manifest, fitted: Fitted, tflite: bytes, runs: list[Run]) -> list[EngineParity]:
    """All engines against Keras' own answer to one whole sequence of real samples, and to the beginnings of others.

    About `_PARITY_STEPS` steps in all, of which a part is kept for the others, however long the longest run is.
    """
    longest = max(range(len(runs)), key=lambda index: len(runs[index]))
    x = runs[longest].x[:_PARITY_STEPS]
    # Compiled, which is many times faster than calling the model.
    expected = np.asarray(fitted.model.predict_on_batch(x[None]), np.float32)[0]
    engine = load_engine("keras", Bundle(Path(), manifest, fitted.weights, None))
    states = [engine.initial_state(1)[0]]
    for first in range(0, len(x) - BLOCK_STEPS, BLOCK_STEPS):
        states.append(engine.scan(x[first : first + BLOCK_STEPS], states[-1])[1])
    short = None
    others = [run.x for index, run in enumerate(runs) if index != longest]
    if others:
        padded, length = pad_segment_starts(others, max(_PARITY_STEPS - len(x), _PARITY_STEPS // 8))
        short = SegmentStarts(padded, length, np.asarray(fitted.model.predict_on_batch(padded), np.float32))
    return check_parity(manifest, fitted.weights, tflite, expected, x, states=np.stack(states), starts=short)


def _calibrated(draft: Bundle, parts: Parts, runs: list[Run], config: Config) -> Bundle:
    """Measure residuals and warm-up on the validation part."""
    streamed = stream_through(draft, parts.validation, _ENGINE)
    calibration = calibrate(draft, streamed, parts.validation, _ENGINE)
    manifest = draft.manifest
    if manifest.regime == "stateful":
        unit, _ = column_scaling(manifest, draft.weights)
        error = _usual_error(draft, streamed)
        warm_up = measure_warm_up(load_engine(_ENGINE, draft), runs, manifest.forecast_size, unit, error)
        draft = draft.with_manifest(warm_up=max(warm_up, config.training.warm_up))
    return draft.with_manifest(calibration=calibration)


def _usual_error(draft: Bundle, streamed: Streamed) -> float:
    """Mean absolute forecast error of the validation part, in scaled units."""
    if draft.manifest.forecast is None:
        return 1.0
    scale = draft.weights["scaling/scale"][draft.manifest.target_index]
    error = np.abs(streamed.truth - streamed.forecast) / scale[:, None]
    return float(np.nanmean(error)) if np.isfinite(error).any() else 1.0


def _baselines(draft: Bundle, config: Config, runs: list[Run], scaling: Scaling) -> Baselines:
    """Fit the baselines on the training part, as the network was."""
    manifest = draft.manifest
    labels = np.concatenate([run.label for run in runs])
    majority = int(np.bincount(labels[labels >= 0]).argmax()) if (labels >= 0).any() else 0
    if manifest.forecast is None:
        return Baselines(majority=majority)
    targets, horizon = manifest.target_index, manifest.forecast.horizon
    x = [run.x for run in runs]
    return Baselines(
        season_steps=find_season([part[:, targets] for part in x], manifest.period_s),
        linear_ar=fit_linear_ar(x, scaling.mean, scaling.scale, targets, horizon, manifest.numeric_index),
        majority=majority,
    )


def _keras_bytes(fitted: Fitted) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / KERAS
        fitted.model.save(path)
        return path.read_bytes()
