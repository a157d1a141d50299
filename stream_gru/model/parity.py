"""The parity check: a bundle is written only if every engine reproduces Keras' full-sequence output.

Each engine runs the samples one by one, as a scan, and in mixed batches; on random samples, which have no Keras output,
litert is compared with numpy.  A difference above the tolerance is an error.  This module does not import keras: its
output is an argument.

Decision: every step of the recording is compared, but every `BLOCK_STEPS` steps the engines restart from Keras' state.
A network near a decision boundary can amplify the last bit of float32 in any engine (measured: from 1e-7 to 1.6e-5
within 200 steps, to 5e-5 within 16,000).  For the same reason the tolerance grows with the effect of rounding on this
model: its states are disturbed by one unit in the last place at every step, and engines may differ by a few times the
resulting difference.  The drift of engines that carry their own state through the whole recording is checked too.

Decision: one segment is not enough.  In a recording of many short sequences it covers few categories and a single start
from the initial state, so the starts of further segments, drawn with a seed, are compared as well.
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
from stream_gru.model.bundle import Bundle, random_samples
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.manifest import EngineParity, Manifest

TOLERANCE = 1e-5
CARRIED_TOLERANCE = 1e-3
BLOCK_STEPS = 256
BATCHES = (2, 7, 8, 33, 129, 257)
MAX_SEGMENT_STARTS = 1024
_ULPS = 2
_ROUNDINGS = 4.0


@dataclass(frozen=True)
class SegmentStarts:
    """The first steps of R segments, each from the initial state, padded with zeros after ``length``.

    ``x``       (R, T, I) float32 inputs
    ``length``  (R,) int64 steps to compare, at most `BLOCK_STEPS`
    ``output``  (R, T, K) float32 outputs of Keras; the padding is ignored
    """

    x: F32
    length: I64
    output: F32


Comparison = tuple[str, I64, F32, F32]  # mode, steps (N,), reference outputs (N, K), outputs of the engine (N, K)


def check_parity(
    manifest: Manifest,
    weights: dict[str, F32],
    tflite: bytes,
    keras_output: F32,
    x: F32,
    tolerance: float = TOLERANCE,
    states: F32 | None = None,
    starts: SegmentStarts | None = None,
) -> list[EngineParity]:
    """Compare litert and numpy with ``keras_output`` (T, K) on ``x`` (T, I), and on further segment ``starts``.

    ``states``: Keras' states before every `BLOCK_STEPS` steps, (ceil(T / BLOCK_STEPS), S), where the engines start;
    None: they run from the initial state to the end, and ``tolerance`` is not widened.  Differences are in scaled units
    (`scaled_difference`).
    Returns the largest difference of each engine; ``samples`` counts all compared ones: those of ``x``, of ``starts``
    and, for litert, random ones.  Raises ParityError with engine, step, output and both values, ValueError for samples
    and outputs of unequal length.
    """
    if keras_output.shape != (len(x), manifest.output_size):
        msg = f"keras_output: expected shape {(len(x), manifest.output_size)}, got {keras_output.shape}"
        raise ValueError(msg)
    _check_finite(keras_output, starts)
    bundle = Bundle(Path("model"), manifest, weights, tflite)
    numpy_engine, litert = load_engine("numpy", bundle), load_engine("litert", bundle)
    rows = random_samples(manifest, weights)
    initial = litert.initial_state(1)
    random_rows = list(_against_numpy(litert, numpy_engine, rows))
    if states is not None:
        rounding = _rounding(numpy_engine, manifest, weights, x, states)
        if starts is not None:
            rounding = max(rounding, _rounding_of_starts(numpy_engine, manifest, weights, starts))
        tolerance = min(max(tolerance, _ROUNDINGS * rounding), CARRIED_TOLERANCE)
    results = []
    for engine, more in ((litert, random_rows), (numpy_engine, [])):
        parts = _blocks(engine, x, keras_output, initial if states is None else states)
        short = () if starts is None else _segment_starts(engine, starts)
        results.append(_judge(engine, manifest, weights, chain(parts, short, more), tolerance))
    if states is not None:
        every = np.arange(len(x))
        for engine in (litert, numpy_engine):
            carried: Comparison = ("carried scan", every, keras_output, _scan(engine, x, initial[0]))
            found = _judge(engine, manifest, weights, [carried], CARRIED_TOLERANCE)
            results.append(replace(found, engine=f"{engine.name} carried"))
    return results


def check_on_this_machine(bundle: Bundle) -> EngineParity:
    """Compare litert with numpy on random samples, within the tolerance under which the bundle was written.

    Training checks parity on its own processor; another one may compute other bits.  Raises ParityError when they
    differ by more, and what `load_engine` raises.
    """
    manifest = bundle.manifest
    litert, numpy_engine = load_engine("litert", bundle), load_engine("numpy", bundle)
    tolerance = max([TOLERANCE, *(one.tolerance for one in manifest.parity if one.engine == "litert")])
    rows = random_samples(manifest, bundle.weights)
    return _judge(litert, manifest, bundle.weights, _against_numpy(litert, numpy_engine, rows), tolerance)


def pad_segment_starts(segments: Sequence[F32], steps: int, seed: int = 0) -> tuple[F32, I64]:
    """Draw segments (T, I), stack their first `BLOCK_STEPS` steps: ``x`` (R, T, I), ``length`` (R,) of `SegmentStarts`.

    As many as fit into ``steps`` steps, padding included, which bounds Keras' work; at least 1, at most
    `MAX_SEGMENT_STARTS`.
    """
    chosen: list[F32] = []
    longest = 0
    for index in np.random.default_rng(seed).permutation(len(segments)).tolist():
        begin = segments[index][:BLOCK_STEPS]
        longest = max(longest, len(begin))
        if chosen and (len(chosen) == MAX_SEGMENT_STARTS or (len(chosen) + 1) * longest > steps):
            break
        chosen.append(begin)
    length = np.array([len(begin) for begin in chosen], np.int64)
    x = np.zeros((len(chosen), int(length.max()), chosen[0].shape[1]), np.float32)
    for row, begin in zip(x, chosen, strict=True):
        row[: len(begin)] = begin
    return x, length


def _check_finite(keras_output: F32, starts: SegmentStarts | None) -> None:
    """Raise ParityError when an output of Keras is not finite."""
    outputs = [("", keras_output)]
    if starts is not None:
        short = zip(starts.output, starts.length.tolist(), strict=True)
        outputs += [(f"segment {segment}, ", output[:length]) for segment, (output, length) in enumerate(short)]
    for where, output in outputs:
        finite = np.isfinite(output).all(axis=1)
        if not finite.all():
            step = int(np.argmin(finite))
            raise ParityError(f"keras: {where}step {step}: expected finite outputs, got {output[step]}")


def scaled_difference(manifest: Manifest, weights: dict[str, F32], a: F32, b: F32) -> F64:
    """Absolute difference of two outputs (N, K) in scaled units, (N, K); infinite where only one is finite.

    Forecast columns are divided by their target's scale; probabilities are not.  Two units in the last place count as
    0: near 101325 Pa the resolution of float32 is 0.008 Pa, whatever the scale.  For scaled values above 1 the
    difference is relative.
    """
    scale, mean = column_scaling(manifest, weights)
    with np.errstate(invalid="ignore", over="ignore"):
        rounding = _ULPS * np.spacing(np.maximum(np.abs(a), np.abs(b))).astype(np.float64)
        reference = b.astype(np.float64)
        difference = np.maximum(np.abs(a - reference) - rounding, 0) / scale
        difference /= np.maximum(1, np.abs((reference - mean) / scale))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isfinite(difference), difference, np.inf))


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


def _against_numpy(engine: Engine, numpy_engine: Engine, rows: F32) -> Iterator[Comparison]:
    initial = engine.initial_state(1)
    return _against(engine, rows, _scan(numpy_engine, rows, initial[0]), initial, "random samples, ")


def _blocks(engine: Engine, x: F32, expected: F32, states: F32) -> Iterator[Comparison]:
    """Compare block by block, each from its own state; a single block when there is one state."""
    length = BLOCK_STEPS if len(states) > 1 else max(1, len(x))
    for number, first in enumerate(range(0, len(x), length)):
        part = slice(first, first + length)
        for mode, steps, wanted, got in _against(engine, x[part], expected[part], states[number : number + 1]):
            yield mode, steps + first, wanted, got


def _segment_starts(engine: Engine, starts: SegmentStarts) -> Iterator[Comparison]:
    """Compare each segment as a scan, and as a row of batches of all segments that have not ended."""
    together = _side_by_side(engine, starts)
    for segment, length in enumerate(starts.length.tolist()):
        every, expected = np.arange(length), starts.output[segment, :length]
        yield f"segment {segment}, batch", every, expected, together[segment, :length]
        scanned = _scan(engine, np.ascontiguousarray(starts.x[segment, :length]), engine.initial_state(1)[0])
        yield f"segment {segment}, scan", every, expected, scanned


def _side_by_side(engine: Engine, starts: SegmentStarts, rng: np.random.Generator | None = None) -> F32:
    """Outputs (R, T, K) of all segments, advanced together, 0 in the padding; ``rng`` disturbs the states."""
    outputs = np.zeros((*starts.x.shape[:2], engine.output_size), np.float32)
    h = engine.initial_state(len(starts.x))
    for t in range(starts.x.shape[1]):
        rows = np.flatnonzero(starts.length > t)
        state = h[rows] if rng is None else _disturbed(h[rows], rng)
        outputs[rows, t], h[rows] = engine.step(starts.x[rows, t], state)
    return outputs


def _disturbed(h: F32, rng: np.random.Generator) -> F32:
    """The state with each number moved one unit in the last place up or down."""
    return np.nextafter(h, np.where(rng.random(h.shape) < 0.5, -np.inf, np.inf).astype(np.float32))


def _rounding_of_starts(engine: Engine, manifest: Manifest, weights: dict[str, F32], starts: SegmentStarts) -> float:
    """What `_rounding` measures, over segment starts."""
    plain = _side_by_side(engine, starts)
    disturbed = _side_by_side(engine, starts, np.random.default_rng(0))
    # The padding is 0 in both.
    pairs = zip(disturbed, plain, strict=True)
    return max(float(scaled_difference(manifest, weights, a, b).max()) for a, b in pairs)


def _rounding(engine: Engine, manifest: Manifest, weights: dict[str, F32], x: F32, states: F32) -> float:
    """Largest difference within a block, in scaled units, when the last bit of the state is disturbed at every step."""
    rng = np.random.default_rng(0)
    worst = 0.0
    for number, first in enumerate(range(0, len(x), BLOCK_STEPS)):
        part = x[first : first + BLOCK_STEPS]
        plain, _ = _one_by_one(engine, part, states[number : number + 1])
        disturbed = np.empty_like(plain)
        h = states[number : number + 1]
        for t in range(len(part)):
            disturbed[t : t + 1], h = engine.step(part[t : t + 1], _disturbed(h, rng))
        worst = max(worst, float(scaled_difference(manifest, weights, disturbed, plain).max()))
    return worst


def _against(engine: Engine, x: F32, expected: F32, h: F32, label: str = "") -> Iterator[Comparison]:
    """Run every sample in every mode: one by one, as a scan, in batches of many sizes; from the state ``h`` (1, S)."""
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
    engine: Engine, manifest: Manifest, weights: dict[str, F32], parts: Iterable[Comparison], tolerance: float
) -> EngineParity:
    """Raise ParityError for the first difference above the tolerance.  Scans count the samples, once each."""
    worst, samples = 0.0, 0
    for mode, steps, expected, got in parts:
        samples += len(steps) if mode.endswith("scan") else 0
        difference = scaled_difference(manifest, weights, got, expected)
        if difference.size == 0:
            continue
        row, column = np.unravel_index(int(difference.argmax()), difference.shape)
        if difference[row, column] > tolerance:
            raise ParityError(
                f"{engine.name} ({mode}): step {steps[row]}, output {manifest.output_names[column]}:"
                f" expected {expected[row, column]:.9g}, got {got[row, column]:.9g};"
                f" they differ by {difference[row, column]:.3g} in scaled units, more than {tolerance:g}"
            )
        worst = max(worst, float(difference[row, column]))
    return EngineParity(engine=engine.name, samples=samples, max_difference=worst, tolerance=tolerance)
