"""The parity gate: no bundle is written unless every engine repeats Keras' own full-sequence output.

Each engine runs the samples one by one, as a scan, and in mixed batches; on random samples, for which there is no
Keras output, litert is held against numpy.  A difference above the tolerance is an error, never a warning.
No keras here: its output comes in as an array.

Decision: every step of the recording is compared, but engines start each `SEGMENT` steps from Keras' own state, because
a network near a decision can amplify the last bit of float32, which no engine can help (seen: 1e-7 grown to 1.6e-5
within 200 steps, to 5e-5 within 16,000).  For the same reason the tolerance grows with what rounding alone does to this
model: its states are disturbed by one unit in the last place at every step, and engines may differ by a few times what
comes of that.  How far they drift when they carry their own state through the whole recording is measured too.

Decision: one run is not enough.  Where a recording is many short sequences it holds a few of the categories and a
single start from the initial state; so the beginnings of further runs, drawn by a seed, are compared as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from stream_gru.core.errors import ParityError
from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32, F64, I64
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.manifest import EngineParity, Manifest

TOLERANCE = 1e-5
CARRIED_TOLERANCE = 1e-3
SEGMENT = 256
BATCHES = (2, 7, 8, 33, 129, 257)
RANDOM_SAMPLES = 256
MOST_RUNS = 1024
_SPREAD = 3.0  # random channels lie within this many scales of the mean
_ULPS = 2
_ROUNDINGS = 4.0


@dataclass(frozen=True)
class Beginnings:
    """The first steps of R runs, each from the initial state, padded with zeros behind ``length``.

    ``x``       (R, T, I) float32
    ``length``  (R,) int64, the steps that count, at most `SEGMENT`
    ``output``  (R, T, K) float32, Keras' outputs; what stands in the padding is not looked at
    """

    x: F32
    length: I64
    output: F32


Part = tuple[str, I64, F32, F32]  # how it was run, steps (N,), reference (N, K), the engine's outputs (N, K)


def check_parity(
    manifest: Manifest,
    weights: dict[str, F32],
    tflite: bytes,
    keras_output: F32,
    x: F32,
    tolerance: float = TOLERANCE,
    states: F32 | None = None,
    runs: Beginnings | None = None,
) -> list[EngineParity]:
    """Run litert and numpy on ``x`` (T, I) and compare with ``keras_output`` (T, K), and on further ``runs``.

    ``states``: Keras' states before each `SEGMENT` steps, (ceil(T / SEGMENT), S), from which the engines start; without
    them they run from the initial state to the end, and ``tolerance`` is not widened.  The ``samples`` of a result are
    all that were compared: those of ``x``, of ``runs`` and, for litert, random ones.  Differences are in scaled units,
    see `scaled_difference`.  Returns the largest of each engine.  Raises ParityError naming engine, step, column
    and both values, ValueError for samples and outputs of unequal length.
    """
    if keras_output.shape != (len(x), manifest.output_size):
        msg = f"keras_output: expected shape {(len(x), manifest.output_size)}, got {keras_output.shape}"
        raise ValueError(msg)
    _check_finite(keras_output, runs)
    bundle = Bundle(Path("model"), manifest, weights, tflite)
    numpy_engine, litert = load_engine("numpy", bundle), load_engine("litert", bundle)
    rows = random_samples(manifest, weights)
    fresh = litert.initial_state(1)
    against_numpy = list(_against(litert, rows, _scan(numpy_engine, rows, fresh[0]), fresh, "random samples, "))
    if states is not None:
        rounding = _rounding(numpy_engine, manifest, weights, x, states)
        if runs is not None:
            rounding = max(rounding, _rounding_of_runs(numpy_engine, manifest, weights, runs))
        tolerance = min(max(tolerance, _ROUNDINGS * rounding), CARRIED_TOLERANCE)
    results = []
    for engine, more in ((litert, against_numpy), (numpy_engine, [])):
        parts = _segments(engine, x, keras_output, fresh if states is None else states)
        short = () if runs is None else _beginnings(engine, runs)
        results.append(_judge(engine, manifest, weights, chain(parts, short, more), tolerance))
    if states is not None:
        every = np.arange(len(x))
        for engine in (litert, numpy_engine):
            carried: Part = ("carried scan", every, keras_output, _scan(engine, x, fresh[0]))
            found = _judge(engine, manifest, weights, [carried], CARRIED_TOLERANCE)
            results.append(replace(found, engine=f"{engine.name} carried"))
    return results


def pad_beginnings(runs: Sequence[F32], steps: int, seed: int = 0) -> tuple[F32, I64]:
    """Draw runs (T, I), lay their first `SEGMENT` steps side by side: x (R, T, I) and length (R,) of `Beginnings`.

    As many as fill ``steps`` steps, padding included, so that Keras has no more to compute than that; one at least,
    at most `MOST_RUNS`.
    """
    chosen: list[F32] = []
    longest = 0
    for index in np.random.default_rng(seed).permutation(len(runs)).tolist():
        begin = runs[index][:SEGMENT]
        longest = max(longest, len(begin))
        if chosen and (len(chosen) == MOST_RUNS or (len(chosen) + 1) * longest > steps):
            break
        chosen.append(begin)
    length = np.array([len(begin) for begin in chosen], np.int64)
    x = np.zeros((len(chosen), int(length.max()), chosen[0].shape[1]), np.float32)
    for row, begin in zip(x, chosen, strict=True):
        row[: len(begin)] = begin
    return x, length


def _check_finite(keras_output: F32, runs: Beginnings | None) -> None:
    """Raise ParityError when Keras itself gives what is no number."""
    outputs = [("", keras_output)]
    if runs is not None:
        short = zip(runs.output, runs.length.tolist(), strict=True)
        outputs += [(f"run {run}, ", output[:length]) for run, (output, length) in enumerate(short)]
    for where, output in outputs:
        finite = np.isfinite(output).all(axis=1)
        if not finite.all():
            step = int(np.argmin(finite))
            raise ParityError(f"keras: {where}step {step}: expected finite outputs, got {output[step]}")


def scaled_difference(manifest: Manifest, weights: dict[str, F32], a: F32, b: F32) -> F64:
    """Absolute difference of outputs (N, K) in scaled units, (N, K); infinite where only one is finite.

    Forecast columns are divided by their target's scale, probabilities stay.  Two units in the last place of an
    output are no difference: near 101325 Pa float32 moves in steps of 0.008 Pa, whatever the scale.  Scaled values
    above 1 count relatively.
    """
    scale, mean = column_scaling(manifest, weights)
    with np.errstate(invalid="ignore", over="ignore"):
        rounding = _ULPS * np.spacing(np.maximum(np.abs(a), np.abs(b))).astype(np.float64)
        reference = b.astype(np.float64)
        difference = np.maximum(np.abs(a - reference) - rounding, 0) / scale
        difference /= np.maximum(1, np.abs((reference - mean) / scale))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))


def random_samples(manifest: Manifest, weights: dict[str, F32], seed: int = 0) -> F32:
    """Draw `RANDOM_SAMPLES` rows of inputs around the mean of training, calendar inputs in -1..1; (T, I)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (RANDOM_SAMPLES, manifest.input_size))
    channels = len(manifest.channels)
    x[:, :channels] = x[:, :channels] * _SPREAD * weights["scaling/scale"] + weights["scaling/mean"]
    for part in manifest.categorical:
        x[:, part.index] = rng.integers(0, part.categories, len(x))
    return x.astype(np.float32)


def column_scaling(manifest: Manifest, weights: dict[str, F32]) -> tuple[F64, F64]:
    """Scale and mean of each output column, (K,); 1 and 0 for probabilities."""
    scale, mean = np.ones(manifest.output_size), np.zeros(manifest.output_size)
    if manifest.forecast is not None:
        column = np.repeat(manifest.target_index, manifest.forecast_size // len(manifest.target_index))
        scale[: len(column)] = np.abs(weights["scaling/scale"][column])
        mean[: len(column)] = weights["scaling/mean"][column]
    return scale, mean


def _scan(engine: Engine, x: F32, h: F32) -> F32:
    return engine.scan(x, h)[0]


def _segments(engine: Engine, x: F32, expected: F32, states: F32) -> Iterator[Part]:
    """Compare segment by segment, each from its own state; one segment when there is one state."""
    length = SEGMENT if len(states) > 1 else max(1, len(x))
    for number, first in enumerate(range(0, len(x), length)):
        part = slice(first, first + length)
        for way, steps, wanted, got in _against(engine, x[part], expected[part], states[number : number + 1]):
            yield way, steps + first, wanted, got


def _beginnings(engine: Engine, runs: Beginnings) -> Iterator[Part]:
    """Compare each run as a scan, and as a row of batches of all runs that have not ended."""
    together = _side_by_side(engine, runs)
    for run, length in enumerate(runs.length.tolist()):
        every, expected = np.arange(length), runs.output[run, :length]
        yield f"run {run}, batch", every, expected, together[run, :length]
        scanned = _scan(engine, np.ascontiguousarray(runs.x[run, :length]), engine.initial_state(1)[0])
        yield f"run {run}, scan", every, expected, scanned


def _side_by_side(engine: Engine, runs: Beginnings, rng: np.random.Generator | None = None) -> F32:
    """Outputs (R, T, K) of all runs, a step of each at a time, 0 in the padding; ``rng`` disturbs the states."""
    outputs = np.zeros((*runs.x.shape[:2], engine.output_size), np.float32)
    h = engine.initial_state(len(runs.x))
    for t in range(runs.x.shape[1]):
        rows = np.flatnonzero(runs.length > t)
        state = h[rows] if rng is None else _disturbed(h[rows], rng)
        outputs[rows, t], h[rows] = engine.step(runs.x[rows, t], state)
    return outputs


def _disturbed(h: F32, rng: np.random.Generator) -> F32:
    """The state, each number one unit in the last place up or down."""
    return np.nextafter(h, np.where(rng.random(h.shape) < 0.5, -np.inf, np.inf).astype(np.float32))


def _rounding_of_runs(engine: Engine, manifest: Manifest, weights: dict[str, F32], runs: Beginnings) -> float:
    """What `_rounding` measures, over the beginnings of runs."""
    plain = _side_by_side(engine, runs)
    disturbed = _side_by_side(engine, runs, np.random.default_rng(0))
    # The padding is 0 in both.
    pairs = zip(disturbed, plain, strict=True)
    return max(float(scaled_difference(manifest, weights, a, b).max()) for a, b in pairs)


def _rounding(engine: Engine, manifest: Manifest, weights: dict[str, F32], x: F32, states: F32) -> float:
    """Largest difference, in scaled units, that disturbing the state's last bit at every step makes in a segment."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for number, first in enumerate(range(0, len(x), SEGMENT)):
        part = x[first : first + SEGMENT]
        plain, _ = _one_by_one(engine, part, states[number : number + 1])
        disturbed = np.empty_like(plain)
        h = states[number : number + 1]
        for t in range(len(part)):
            disturbed[t : t + 1], h = engine.step(part[t : t + 1], _disturbed(h, rng))
        worst = max(worst, float(scaled_difference(manifest, weights, disturbed, plain).max()))
    return worst


def _against(engine: Engine, x: F32, expected: F32, h: F32, label: str = "") -> Iterator[Part]:
    """Run every sample in every way: one by one, as a scan, and as rows of batches of many sizes; from ``h`` (1, S)."""
    every = np.arange(len(x))
    outputs, states = _one_by_one(engine, x, h)
    yield f"{label}step", every, expected, outputs
    yield f"{label}scan", every, expected, _scan(engine, x, h[0])
    order = np.random.default_rng(0).permutation(len(x))
    start = index = 0
    while start < len(x):
        steps = order[start : start + BATCHES[index % len(BATCHES)]]
        y, _ = engine.step(np.ascontiguousarray(x[steps]), states[steps])
        yield f"{label}batch of {len(steps)}", steps, expected[steps], y
        start, index = start + len(steps), index + 1


def _one_by_one(engine: Engine, x: F32, h: F32) -> tuple[F32, F32]:
    """Outputs (T, K) and the states before each sample (T, S)."""
    outputs = np.empty((len(x), engine.output_size), np.float32)
    states = np.empty((len(x), engine.state_size), np.float32)
    for t in range(len(x)):
        states[t] = h[0]
        outputs[t : t + 1], h = engine.step(x[t : t + 1], h)
    return outputs, states


def _judge(
    engine: Engine, manifest: Manifest, weights: dict[str, F32], parts: Iterable[Part], tolerance: float
) -> EngineParity:
    """Raise ParityError for the first part beyond the tolerance.  Each sample is scanned once: so they are counted."""
    worst, samples = 0.0, 0
    for way, steps, expected, got in parts:
        samples += len(steps) if way.endswith("scan") else 0
        difference = scaled_difference(manifest, weights, got, expected)
        if difference.size == 0:
            continue
        row, column = np.unravel_index(int(difference.argmax()), difference.shape)
        if difference[row, column] > tolerance:
            raise ParityError(
                f"{engine.name} ({way}): step {steps[row]}, output {manifest.output_names[column]}:"
                f" expected {expected[row, column]:.9g}, got {got[row, column]:.9g};"
                f" they differ by {difference[row, column]:.3g} in scaled units, more than {tolerance:g}"
            )
        worst = max(worst, float(difference[row, column]))
    return EngineParity(engine=engine.name, samples=samples, max_difference=worst, tolerance=tolerance)
