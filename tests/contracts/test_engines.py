"""Every engine fulfils the Engine contract on every stored reference model."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import pytest

from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32
from stream_gru.model.engines.registry import ENGINES, load_engine
from tests.support.models import TOLERANCE, random_inputs
from tests.support.reference_models import Reference, load_reference, reference_names

PACKAGES = {"litert": ("ai_edge_litert",), "keras": ("tensorflow",), "onnx": ("onnx", "onnxruntime")}
EXACT = {"litert"}  # bit for bit, however the rows are batched
# Every padded size, its neighbours, and sizes between; the export tests run through all of 1..257.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 64, 100, 127, 128, 129, 200, 255, 256, 257)

Check = Callable[[Engine, Reference], None]


def _engine_row(name: str) -> object:
    missing = [package for package in PACKAGES.get(name, ()) if find_spec(package) is None]
    reason = f"{name}: {', '.join(missing)} is not installed"
    return pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=reason))


@lru_cache(maxsize=1)
def _case(engine: str, reference: str) -> tuple[Engine, Reference]:
    ref = load_reference(reference)
    return load_engine(engine, ref.bundle), ref


def _states(engine: Engine, rows: int) -> F32:
    return np.random.default_rng(9).uniform(-1, 1, (rows, engine.state_size)).astype(np.float32)


def _equal(engine: Engine, got: F32, expected: F32) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=0 if engine.name in EXACT else TOLERANCE)


def check_matches_keras(engine: Engine, ref: Reference) -> None:
    """Outputs equal the stored Keras outputs, step by step."""
    h = engine.initial_state(1)
    for t in range(len(ref.x)):
        y, h = engine.step(ref.x[t : t + 1], h)
        np.testing.assert_allclose(y[0], ref.y[t], rtol=0, atol=TOLERANCE)


def check_scan_equals_steps(engine: Engine, ref: Reference) -> None:
    """A sequence cut anywhere gives the outputs and the last state of its steps."""
    whole, last = engine.scan(ref.x, engine.initial_state(1)[0])
    np.testing.assert_allclose(whole, ref.y, rtol=0, atol=TOLERANCE)
    h, parts = engine.initial_state(1)[0], []
    for start, end in ((0, 1), (1, 8), (8, 9), (9, 50), (50, len(ref.x))):
        y, h = engine.scan(ref.x[start:end], h)
        parts.append(y)
    _equal(engine, np.concatenate(parts), whole)
    _equal(engine, h, last)
    h = engine.initial_state(1)
    for t in range(len(ref.x)):
        y, h = engine.step(ref.x[t : t + 1], h)
        _equal(engine, y[0], whole[t])
    _equal(engine, h[0], last)


def check_inputs_not_mutated(engine: Engine, ref: Reference) -> None:
    """Samples and states are not written to; read-only and non-contiguous ones are accepted."""
    for rows in (1, 5, 8):
        x, h = ref.x[:rows].copy(), _states(engine, rows)
        x_before, h_before = x.copy(), h.copy()
        x.flags.writeable = h.flags.writeable = False
        engine.step(x, h)
        engine.scan(x, h[0])
        np.testing.assert_array_equal(x, x_before)
        np.testing.assert_array_equal(h, h_before)
    wide = np.asfortranarray(ref.x[:6])
    _equal(engine, engine.step(wide, _states(engine, 6))[0], engine.step(ref.x[:6], _states(engine, 6))[0])


def check_outputs_not_aliased(engine: Engine, ref: Reference) -> None:
    """Results do not change when the engine is called again, and are writable."""
    for rows in (1, 5, 8):
        x, h = ref.x[:rows], _states(engine, rows)
        results = [*engine.step(x, h), *engine.scan(x, h[0])]
        kept = [result.copy() for result in results]
        engine.step(x + 1, h * 0)
        engine.scan(x + 1, h[0] * 0)
        for result, copy in zip(results, kept, strict=True):
            np.testing.assert_array_equal(result, copy)
            assert not np.shares_memory(result, h)
            result += 1  # writeable, and not shared
        _equal(engine, engine.step(x, h)[0], kept[0])


def check_batch_equals_rows(engine: Engine, ref: Reference) -> None:
    """B streams in one call give the results of B calls, for any B and position."""
    sizes = SIZES if engine.name != "keras" else (1, 5, 33)
    x, h = random_inputs(ref.bundle.manifest, max(sizes) + 40), _states(engine, max(sizes) + 40)
    rows = [engine.step(x[i : i + 1], h[i : i + 1]) for i in range(max(sizes) + 40)]
    ys, hs = np.concatenate([y for y, _ in rows]), np.concatenate([state for _, state in rows])
    for size in sizes:
        chosen = slice(size * 7 % 40, size * 7 % 40 + size)
        y, state = engine.step(x[chosen], h[chosen])
        _equal(engine, y, ys[chosen])
        _equal(engine, state, hs[chosen])


def check_rows_may_be_permuted(engine: Engine, ref: Reference) -> None:
    """The order of the rows affects only the order of the results."""
    x, h = random_inputs(ref.bundle.manifest, 50), _states(engine, 50)
    order = np.random.default_rng(3).permutation(50)
    y, state = engine.step(x, h)
    y_permuted, state_permuted = engine.step(x[order], h[order])
    _equal(engine, y_permuted, y[order])
    _equal(engine, state_permuted, state[order])


def check_shapes_and_dtypes(engine: Engine, ref: Reference) -> None:
    """Sizes are those of the manifest; everything is C-contiguous float32, also for no rows and no samples."""
    manifest = ref.bundle.manifest
    sizes = engine.input_size, engine.state_size, engine.output_size
    assert sizes == (manifest.input_size, manifest.state_size, manifest.output_size)
    for rows in (0, 1, 3, 33):
        h = engine.initial_state(rows)
        y, state = engine.step(random_inputs(manifest, rows), h)
        outputs, last = engine.scan(random_inputs(manifest, rows), engine.initial_state(1)[0])
        assert h.shape == state.shape == (rows, sizes[1])
        assert y.shape == outputs.shape == (rows, sizes[2])
        assert last.shape == (sizes[1],)
        for array in (h, y, state, outputs, last):
            assert array.dtype == np.float32
            assert array.flags.c_contiguous


def check_no_samples_change_nothing(engine: Engine, ref: Reference) -> None:
    """A scan over no samples returns the state it was given, as a new array."""
    h = _states(engine, 1)[0]
    _, last = engine.scan(np.zeros((0, engine.input_size), np.float32), h)
    np.testing.assert_array_equal(last, h)
    assert not np.shares_memory(last, h)


def check_wrong_shapes_are_refused(engine: Engine, ref: Reference) -> None:
    """A wrong shape or dtype is a ValueError with the expected and the actual one."""
    x, h = random_inputs(ref.bundle.manifest, 4), engine.initial_state(4)
    i, s = engine.input_size, engine.state_size
    wrong = [
        (x[:, :-1], h, rf"\(B, {i}\).*\(4, {i - 1}\)"),
        (x, h[:3], rf"\(4, {s}\).*\(3, {s}\)"),
        (x[:1], h[:1, :-1], rf"\(1, {s}\).*\(1, {s - 1}\)"),
        (x.astype(np.float64), h, "float32.*float64"),
        (x[:1], h[:1].astype(np.float64), "float32.*float64"),
        (x[0], h[0], rf"\(B, {i}\).*\({i},\)"),
    ]
    for bad_x, bad_h, message in wrong:
        with pytest.raises(ValueError, match=message):
            engine.step(bad_x, bad_h)
    with pytest.raises(ValueError, match=rf"\({s},\).*\(1, {s}\)"):
        engine.scan(x, h[:1])
    with pytest.raises(ValueError, match=rf"\(T, {i}\).*\({i},\)"):
        engine.scan(x[0], h[0])


def check_deterministic(engine: Engine, ref: Reference) -> None:
    """The same call gives the same bits."""
    x, h = random_inputs(ref.bundle.manifest, 21), _states(engine, 21)
    first, second = engine.step(x, h), engine.step(x, h)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def check_nan_stays_in_its_row(engine: Engine, ref: Reference) -> None:
    """NaN, infinity and huge numbers in one row do not change the bits of other rows, and nothing warns."""
    x, h = random_inputs(ref.bundle.manifest, 20), _states(engine, 20)
    y, state = engine.step(x, h)
    others = np.arange(20) != 7
    for value in (np.nan, np.inf, -np.inf, np.float32(3e38)):
        bad_x, bad_h = x.copy(), h.copy()
        bad_x[7], bad_h[7] = value, value
        bad_y, bad_state = engine.step(bad_x, bad_h)
        np.testing.assert_array_equal(bad_y[others], y[others])
        np.testing.assert_array_equal(bad_state[others], state[others])
        _equal(engine, engine.step(x, h)[0], y)  # nor does a later call remember it


def check_no_code_reads_outside_its_table(engine: Engine, ref: Reference) -> None:
    """A code below the first category counts as the first, one above the last as the last, however far away."""
    for part in ref.bundle.manifest.categorical:
        for code, nearest in ((-1, 0), (-3e9, 0), (part.categories, part.categories - 1), (1e9, part.categories - 1)):
            x, expected = ref.x[:3].copy(), ref.x[:3].copy()
            x[:, part.index], expected[:, part.index] = code, nearest
            h = _states(engine, 3)
            np.testing.assert_allclose(engine.step(x, h)[0], engine.step(expected, h)[0], rtol=0, atol=TOLERANCE)


CHECKS: list[Check] = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("reference", reference_names())
@pytest.mark.parametrize("engine", [_engine_row(name) for name in sorted(ENGINES.built_in)])
def test_engine_contract(engine: str, reference: str, check: Check) -> None:
    """Every engine fulfils every clause."""
    check(*_case(engine, reference))


@pytest.mark.skipif(find_spec("ai_edge_litert") is None, reason="litert: ai_edge_litert is not installed")
@pytest.mark.parametrize("reference", ["gru_reset_after", "lstm"])
def test_engines_agree_after_a_hundred_thousand_steps(reference: str) -> None:
    """Rounding does not accumulate: numpy and litert agree at every one of 100,000 steps."""
    ref = load_reference(reference)
    x = random_inputs(ref.bundle.manifest, 100_000, seed=8)
    results = []
    for name in ("numpy", "litert"):
        engine = load_engine(name, ref.bundle)
        results.append(engine.scan(x, engine.initial_state(1)[0]))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=TOLERANCE)
