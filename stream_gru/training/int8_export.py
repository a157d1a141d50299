"""`tflite-int8`: quantize a model, measure the loss of accuracy on the test part, reject a model that loses too much.

training part ─▶ pairs of (x, h) ─▶ quantized step ─▶ test part, step by step ─▶ loss within the limit? ─▶ file + JSON

Both models are evaluated in the same way (`training.evaluation.evaluate`) on the same rows, from the initial state;
`stream_gru.training.quantize` makes the flatbuffer and documents what is int8 in it.

Decision: predictions that are not finite are not scored, which would favour a model with fewer of them; the scored
predictions are counted, and an int8 model with fewer of them than float32 exceeds every limit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.metadata import version

import msgspec
import numpy as np
from msgspec import Struct

from stream_gru import __version__
from stream_gru.config import Config, SplitConfig
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.errors import ConfigError, ParityError
from stream_gru.core.protocols import Engine
from stream_gru.core.types import SampleBatch
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.export.formats import ExportedFiles, ExportRequest
from stream_gru.pipeline.pipeline import conditioning_spec
from stream_gru.training.evaluation.evaluate import Baselines, evaluate
from stream_gru.training.quantize import IN_FLOAT32, IN_INT8, StepEngine, calibration_pairs, quantized_step
from stream_gru.training.splits import Splits, segments_of, split

SEED = 0
PAIRS = 1000
# Steps streamed for calibration and rows scored: a minute on a slow machine.
CALIBRATION_STEPS = 500_000
TEST_ROWS = 200_000
_MIN_ROWS_PER_STREAM = 1024


class Limit(Struct, frozen=True, kw_only=True):
    """Largest accepted loss: percentage points of accuracy, and relative growth of the scaled error."""

    accuracy_points: float = 1.0
    scaled_error: float = 0.05


class Score(Struct, frozen=True, kw_only=True):
    """Accuracy of labelled rows, and mean absolute forecast error in scaled units; None without truth or head.

    ``class_rows``: rows scored for the accuracy; ``forecasts``: forecasts scored for the error, of which a row has one
    for each target and horizon.
    """

    accuracy: float | None
    mae_scaled: float | None
    class_rows: int
    forecasts: int


class Int8Report(Struct, frozen=True, kw_only=True):
    """Report beside the model, ``<name>.json``.

    ``rows``: rows scored of ``test_rows``; ``calibration_rows``: pairs of sample and state, drawn from
    ``calibration_steps`` steps of the training part.  The parts are those of ``split`` in the file ``config``, over its
    ``recordings``; the bundle does not store the split it was trained with.
    """

    model_id: str
    format: str
    in_int8: str
    in_float32: str
    within_limit: bool
    config: str
    recordings: list[str]
    split: SplitConfig
    limit: Limit
    float32: Score
    int8: Score
    accuracy_points_lost: float | None
    scaled_error_grown: float | None
    rows: int
    test_rows: int
    calibration_rows: int
    calibration_steps: int
    seed: int
    versions: dict[str, str]
    bytes: int
    bytes_float32: int | None
    sha256: str


@dataclass(frozen=True)
class _Calibrated:
    content: bytes
    pairs: int
    steps: int


def int8_files(request: ExportRequest, limit: Limit | None = None) -> ExportedFiles:
    """The flatbuffer and its report.

    Raises ConfigError (no configuration, or one of another model), DataError (unusable recordings), ParityError (the
    loss exceeds ``limit``; not with ``force``).
    """
    bundle, limit = request.bundle, limit or Limit()
    splits = _splits(bundle, request.config)
    made = _quantize(bundle, splits.train)
    rows = bounded(splits.test, TEST_ROWS)
    plain = score(bundle, rows, "auto")
    small = score(bundle, rows, StepEngine(bundle.manifest, made.content))
    report = _report(request, limit, made, plain, small, (len(rows), len(splits.test)))
    for line in report_lines(report):
        request.report(line)
    if not report.within_limit and not request.force:
        raise ParityError(
            f"tflite-int8: the loss exceeds the limit (accuracy {-limit.accuracy_points:+g} points, forecast error"
            f" {limit.scaled_error:+.0%}, no fewer predictions), or the test part has no truth to measure it; nothing"
            " was written; train on more varied recordings, or use --force to write it nevertheless"
        )
    text = msgspec.json.format(msgspec.json.encode(report), indent=1)
    return {"": made.content, ".json": text + b"\n"}


def _splits(bundle: Bundle, config: Config | None) -> Splits:
    """The recordings of the training, split in the same way."""
    if config is None or config.data is None:
        raise ConfigError("tflite-int8: expected the training configuration, with the table [data]; see --config")
    wanted = [(channel.name, channel.categories) for channel in bundle.manifest.channels]
    found = [(channel.name, channel.categories) for channel in config.channel]
    if (found, config.data.period_s) != (wanted, bundle.manifest.period_s):
        raise ConfigError(
            f"--config: expected the configuration of this model, with the channels"
            f" {', '.join(name for name, _ in wanted)} every {bundle.manifest.period_s:g} s,"
            f" got {', '.join(name for name, _ in found)} every {config.data.period_s:g} s"
        )
    return split(read_files(config.data.files, Fields.of(config.input, config.channel)), config.split)


def _quantize(bundle: Bundle, train: SampleBatch) -> _Calibrated:
    manifest = bundle.manifest
    labels = manifest.classes.labels if manifest.classes else []
    rules = conditioning_spec(msgspec.structs.replace(manifest, regime="stateful", window=None))
    window = (manifest.window or 0) if manifest.regime == "windowed" else 0
    engine = load_engine("auto", bundle)
    x, h, steps = calibration_pairs(engine, segments_of(train, rules, labels), window, PAIRS, CALIBRATION_STEPS, SEED)
    return _Calibrated(quantized_step(manifest, bundle.weights, x, h), len(x), steps)


def bounded(batch: SampleBatch, limit: int) -> SampleBatch:
    """At most ``limit`` rows, in order of arrival: equal numbers of rows from the start of streams drawn by `SEED`.

    A stream contributes at least `_MIN_ROWS_PER_STREAM` rows; with many streams some contribute none.
    """
    if len(batch) <= limit:
        return batch
    order = np.argsort(batch.stream_index, kind="stable")
    counts = np.bincount(batch.stream_index, minlength=len(batch.stream_names))
    share = max(_MIN_ROWS_PER_STREAM, limit // int(np.count_nonzero(counts)))
    ends = np.cumsum(counts)
    kept, left = np.zeros(len(batch), np.bool_), limit
    for index in np.random.default_rng(SEED).permutation(len(batch.stream_names)).tolist():
        take = min(share, left, int(counts[index]))
        first = int(ends[index] - counts[index])
        kept[order[first : first + take]] = True
        left -= take
    return batch.take(kept)


def score(bundle: Bundle, rows: SampleBatch, engine: str | Engine) -> Score:
    """Score a bundle, computed by ``engine``, on a recording."""
    scores, streamed = evaluate(bundle, rows, Baselines(), engine)
    return Score(
        accuracy=None if scores.classes is None else scores.classes.accuracy,
        mae_scaled=None if scores.forecast is None else scores.forecast.model.mae_scaled,
        class_rows=0 if scores.classes is None else scores.classes.samples,
        forecasts=int((np.isfinite(streamed.forecast) & np.isfinite(streamed.truth)).sum()),
    )


def _report(
    request: ExportRequest, limit: Limit, made: _Calibrated, plain: Score, small: Score, rows: tuple[int, int]
) -> Int8Report:
    points = grown = None
    if plain.accuracy is not None and small.accuracy is not None:
        points = 100 * (plain.accuracy - small.accuracy)
    if plain.mae_scaled is not None and small.mae_scaled is not None:
        grown = small.mae_scaled / max(plain.mae_scaled, 1e-12) - 1
    bundle, config = request.bundle, request.config
    manifest = bundle.manifest
    accurate = manifest.classes is None or (points is not None and points <= limit.accuracy_points)
    exact = manifest.forecast is None or (grown is not None and grown <= limit.scaled_error)
    answered = small.class_rows >= plain.class_rows and small.forecasts >= plain.forecasts
    return Int8Report(
        model_id=manifest.model_id,
        format="tflite-int8",
        in_int8=IN_INT8,
        in_float32=IN_FLOAT32,
        within_limit=accurate and exact and answered,
        config=request.config_name,
        recordings=[] if config is None or config.data is None else config.data.files,
        split=SplitConfig() if config is None else config.split,
        limit=limit,
        float32=plain,
        int8=small,
        accuracy_points_lost=points,
        scaled_error_grown=grown,
        rows=rows[0],
        test_rows=rows[1],
        calibration_rows=made.pairs,
        calibration_steps=made.steps,
        seed=SEED,
        versions={
            "stream-gru": __version__,
            **{name: version(name) for name in ("tensorflow", "ai-edge-litert", "numpy")},
        },
        bytes=len(made.content),
        bytes_float32=None if bundle.tflite is None else len(bundle.tflite),
        sha256=hashlib.sha256(made.content).hexdigest(),
    )


def report_lines(report: Int8Report) -> list[str]:
    """The report in sentences."""
    of = f" of {report.test_rows:,}" if report.rows < report.test_rows else ""
    lines = [
        f"calibrated on {report.calibration_rows:,} samples and states of the training part; scored on"
        f" {report.rows:,}{of} rows of the test part, step by step",
        f"recordings: {', '.join(report.recordings)}, split by {split_keys(report.split)} of"
        f" {report.config or 'the configuration'}; use the split of the training, which the bundle does not store: with"
        " another one, training rows may be scored",
    ]
    if report.accuracy_points_lost is not None:
        lines.append(
            f"accuracy: float32 {report.float32.accuracy:.2%}, int8 {report.int8.accuracy:.2%},"
            f" {-report.accuracy_points_lost:+.2f} points (limit {-report.limit.accuracy_points:+g})"
        )
    if report.scaled_error_grown is not None:
        lines.append(
            f"forecast error in standard deviations: float32 {report.float32.mae_scaled:.5f},"
            f" int8 {report.int8.mae_scaled:.5f}, {report.scaled_error_grown:+.1%}"
            f" (limit {report.limit.scaled_error:+.0%})"
        )
    for kind, plain, small in (
        ("rows with a class", report.float32.class_rows, report.int8.class_rows),
        ("forecasts", report.float32.forecasts, report.int8.forecasts),
    ):
        if small < plain:
            lines.append(f"{kind} scored: float32 {plain:,}, int8 {small:,}; the others are not finite")
    whole = "" if report.bytes_float32 is None else f", the float32 flatbuffer {report.bytes_float32:,}"
    return [*lines, f"size: {report.bytes:,} bytes{whole}"]


def split_keys(config: SplitConfig) -> str:
    """The keys of a split that have an effect, as written in a configuration."""
    if config.by == "stream":
        names = ["by", "validation_streams", "test_streams"]
    else:
        instants = ["validation_from", "test_from"] if config.validation_from else ["validation", "test"]
        names = ["by", *instants, *(["until"] if config.until else [])]
    return ", ".join(f"{name} = {msgspec.json.encode(getattr(config, name)).decode()}" for name in names)
