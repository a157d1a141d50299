"""The exported C compiles without a warning or a library, and gives the outputs of the numpy engine."""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.config.field_types import Activation, Cell
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.export.c_layers import number, quoted
from stream_gru.model.export.c_math import functions
from stream_gru.model.export.c_source import c_files
from tests.support.c_compiler import FLOATS, STRICT, CModel, run_checked, shared_object, write_c
from tests.support.models import CELLS_AND_HEADS, TOLERANCE, make_bundle, random_inputs
from tests.support.reference_models import load_reference
from tests.support.requirements import needs_gcc

needs_gpp = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
MODELS: dict[str, dict[str, Any]] = {
    **CELLS_AND_HEADS,
    "simple_rnn_no_bias": {"cell": "simple_rnn", "use_bias": False},
    "wide_rnn": {"cell": "simple_rnn", "units": (90,), "calendar": 4, "categories": (70,), "embedding": 60},
    "large": {"units": (64,), "channels": 12, "horizon": 24, "labels": 12},
    "one_label": {"horizon": 0, "labels": 1, "class_activation": "sigmoid"},
    "sigmoid": {"class_activation": "sigmoid"},
    "logistic": {"labels": 2, "class_activation": "logistic"},
    "embedding": {"categories": (9, 4), "embedding": 5, "calendar": 1},
    "one_hot": {"categories": (9, 4)},
    "categories_alone": {"channels": 0, "categories": (5,), "horizon": 0, "labels": 5},
    "embedding_alone": {"channels": 0, "categories": (5,), "embedding": 3, "horizon": 0, "labels": 5},
}


def _scaled(bundle: Bundle, difference: F32) -> F32:
    """Differences of outputs (T, K) in scaled units."""
    manifest, scaled = bundle.manifest, difference.copy()
    if manifest.forecast is not None:
        each = manifest.forecast_size // len(manifest.forecast.targets)
        scaled[:, : manifest.forecast_size] /= np.repeat(bundle.weights["scaling/scale"][manifest.target_index], each)
    return scaled


@needs_gcc
@pytest.mark.parametrize("name", MODELS)
def test_three_hundred_steps_equal_the_numpy_engine(name: str, tmp_path: Path) -> None:
    """Every cell and head gives the outputs and the last state of the numpy engine."""
    bundle = make_bundle(**MODELS[name], seed=3)
    x, model, engine = random_inputs(bundle.manifest, 300), CModel(bundle, tmp_path), load_engine("numpy", bundle)
    expected, expected_state = engine.scan(x, engine.initial_state(1)[0])
    y, state = model.scan(x, model.reset())
    assert np.abs(_scaled(bundle, y - expected)).max() < TOLERANCE
    np.testing.assert_allclose(state, expected_state, rtol=0, atol=TOLERANCE)


@needs_gcc
@pytest.mark.parametrize("name", ["gru_reset_after", "lstm", "gru_categories"])
def test_stored_keras_outputs_are_reproduced(name: str, tmp_path: Path) -> None:
    """The C code gives Keras' outputs for the stored samples."""
    ref = load_reference(name)
    model = CModel(replace(ref.bundle, tflite=None), tmp_path)
    y, _ = model.scan(ref.x, model.reset())
    assert np.abs(_scaled(ref.bundle, y - ref.y)).max() < TOLERANCE


@needs_gcc
@pytest.mark.parametrize(
    ("cell", "activation"),
    [*(("gru", name) for name in get_args(Activation)), ("lstm", "selu"), ("lstm", "relu"), ("simple_rnn", "linear")],
)
def test_every_activation_equals_numpy(cell: Cell, activation: Activation, tmp_path: Path) -> None:
    """As activation and as gate, from random states; single steps, because gates above 1 make a state grow."""
    bundle = make_bundle(cell=cell, activation=activation, recurrent_activation=activation, seed=4)
    engine, model = load_engine("numpy", bundle), CModel(bundle, tmp_path)
    x = random_inputs(bundle.manifest, 60)
    h = np.random.default_rng(5).uniform(-2, 2, (60, engine.state_size)).astype(np.float32)
    expected, expected_state = engine.step(x, h)
    results = [model.step(x[row], h[row]) for row in range(60)]
    for got, wanted in (
        (np.array([y for y, _ in results]), expected),
        (np.array([s for _, s in results]), expected_state),
    ):
        assert (np.abs(got - wanted) / (1 + np.abs(wanted))).max() < TOLERANCE


# Else gcc writes short memcpys out in place, and what a longer state would need is not seen.
_CALLS = ("-mmemcpy-strategy=libcall:-1:noalign", "-mmemset-strategy=libcall:-1:noalign")
_HOSTED = ("-std=c99", "-O3", *(_CALLS if platform.machine() == "x86_64" else ()))


@needs_gcc
@pytest.mark.parametrize("options", [(*STRICT, "-O2"), _HOSTED], ids=["freestanding", "hosted"])
@pytest.mark.parametrize("name", ["large", "wide_rnn"])
def test_the_object_has_no_undefined_symbol(name: str, options: tuple[str, ...], tmp_path: Path) -> None:
    """It needs no library: no warning and no undefined symbol, not even memcpy or memset from the compiler."""
    for source in write_c(replace(make_bundle(**MODELS[name]), tflite=b"abc"), tmp_path):
        run_checked(
            "gcc", *options, "-fno-pie", "-fno-stack-protector", "-c", str(source), "-o", str(source.with_suffix(".o"))
        )
        assert run_checked("nm", "-u", str(source.with_suffix(".o"))).split() == []


@needs_gpp
@pytest.mark.parametrize("name", ["lstm", "embedding"])
def test_it_compiles_as_cpp(name: str, tmp_path: Path) -> None:
    """A C++ compiler accepts the files, and their symbols keep their C names."""
    for source in write_c(replace(make_bundle(**MODELS[name]), tflite=b"abc"), tmp_path):
        target = str(source.with_suffix(".o"))
        run_checked(
            "g++",
            "-x",
            "c++",
            "-std=c++11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-pedantic",
            "-c",
            str(source),
            "-o",
            target,
        )
        assert {"stream_gru_step", "stream_gru_tflite"} & set(run_checked("nm", target).split())


# numpy's function, where it is measured, and how many units in the last place it may be off.
FUNCTIONS: dict[str, tuple[Callable[[Any], Any], float, float, float]] = {
    "exp": (np.exp, -104, 0, 1.5),
    "expm1": (np.expm1, -30, 0, 1.5),
    "tanh": (np.tanh, -12, 12, 3),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -80, 80, 3),
    "softplus": (lambda x: np.logaddexp(x, 0), -80, 80, 4),
}


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The C functions, callable on arrays."""
    source = tmp_path_factory.mktemp("c") / "probe.c"
    loop = "void probe_{0}(const float *x, float *y, int n) {{ for (int i = 0; i < n; i++) y[i] = sg_{0}(x[i]); }}"
    wrappers = [loop.format(name) for name in FUNCTIONS]
    source.write_text("\n".join([*functions(FUNCTIONS), *wrappers]))
    return shared_object([source])


def _call(probes: ctypes.CDLL, name: str, x: F32) -> F32:
    y = np.empty_like(x)
    probes[f"probe_{name}"](x.ctypes.data_as(FLOATS), y.ctypes.data_as(FLOATS), len(x))
    return y


@needs_gcc
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_accurate_to_a_few_ulp(name: str, probes: ctypes.CDLL) -> None:
    """Over the whole range, and close to zero, against float64."""
    true, low, high, ulps = FUNCTIONS[name]
    tiny = np.geomspace(1e-30, 1, 20_000)
    x = np.concatenate([np.linspace(low, high, 400_000), *([-tiny] if high == 0 else [tiny, -tiny])]).astype(np.float32)
    expected = true(x.astype(np.float64))
    spacing = np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
    assert (np.abs(_call(probes, name, x) - expected) / spacing).max() <= ulps


@needs_gcc
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_at_extreme_arguments(name: str, probes: ctypes.CDLL) -> None:
    """NaN stays NaN; huge and infinite arguments give the limit."""
    assert np.isnan(_call(probes, name, np.array([np.nan], np.float32))).all()
    true, _, high, _ = FUNCTIONS[name]
    x = np.array([-np.inf, -3e38, -1e4, 0] + ([1e4, 3e38, np.inf] if high else []), np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(_call(probes, name, x), true(x.astype(np.float64)).astype(np.float32))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_numbers_are_written_exactly(value: float) -> None:
    """A literal is a float constant and reads back as the same number."""
    text = number(value)
    assert re.fullmatch(r"-?\d+(\.\d+)?(e[-+]\d+)?f", text)
    assert re.search(r"[.e]", text)
    assert np.float32(text[:-1]) == np.float32(value)


@needs_gcc
def test_nan_propagates_and_a_nan_category_is_the_first(tmp_path: Path) -> None:
    """A missing quantity makes the outputs NaN; codes outside the table are clipped, as in numpy."""
    bundle = make_bundle(**MODELS["embedding"])
    model, engine = CModel(bundle, tmp_path), load_engine("numpy", bundle)
    x = random_inputs(bundle.manifest, 1)[0]
    broken = x.copy()
    broken[1] = np.nan
    y, state = model.step(broken, model.reset())
    assert np.isnan(y).all()
    assert np.isnan(state).all()
    for code in (np.nan, -3, 1.9, 100):
        x[3] = x[4] = code
        expected, _ = engine.step(x[None], engine.initial_state(1))
        np.testing.assert_allclose(model.step(x, model.reset())[0], expected[0], rtol=0, atol=TOLERANCE * 4)


@needs_gcc
def test_strings_are_escaped(tmp_path: Path) -> None:
    """Quotes, ends of comments, trigraphs, line ends and other alphabets do not break the code and are unchanged."""
    names = ['a "b" */ \\', "??/", "°C\n\t/* \u202e µ7"]
    bundle = make_bundle()
    channels = [
        msgspec.structs.replace(c, name=n, unit=n[::-1]) for c, n in zip(bundle.manifest.channels, names, strict=True)
    ]
    assert bundle.manifest.forecast is not None
    assert bundle.manifest.classes is not None
    forecast = msgspec.structs.replace(bundle.manifest.forecast, targets=names[:2])
    classes = msgspec.structs.replace(bundle.manifest.classes, labels=names)
    parts = {"channels": channels, "forecast": forecast, "classes": classes, "model_id": names[0]}
    model = CModel(replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, **parts)), tmp_path)
    assert model.strings("stream_gru_input_names", 3) == names
    assert model.strings("stream_gru_input_units", 3) == [name[::-1] for name in names]
    assert model.strings("stream_gru_target_names", 2) == names[:2]
    assert model.strings("stream_gru_label_names", 3) == names


@given(st.text())
def test_a_name_cannot_end_a_comment(text: str) -> None:
    """It cannot open another one, continue a line or hold a character that is not printable."""
    written = quoted(text)
    assert not re.search(r"\*/|/\*|\\|\?\?", written)
    assert written.isprintable()


@needs_gcc
def test_the_flatbuffer_is_complete_and_aligned(tmp_path: Path) -> None:
    """The array holds the file, aligned to 16 bytes, with its length."""
    bundle = load_reference("lstm").bundle
    assert bundle.tflite is not None
    library = CModel(bundle, tmp_path).library
    size = ctypes.c_ulong.in_dll(library, "stream_gru_tflite_size").value
    array = (ctypes.c_ubyte * size).in_dll(library, "stream_gru_tflite")
    assert bytes(array) == bundle.tflite
    assert ctypes.addressof(array) % 16 == 0


def test_without_a_flatbuffer_there_are_two_files() -> None:
    """No empty file is written."""
    bundle = make_bundle()
    assert set(c_files(bundle.manifest, bundle.weights, None)) == {"stream_gru_model.h", "stream_gru_model.c"}


def test_the_same_model_gives_the_same_bytes() -> None:
    """Files can be kept under version control and compared."""
    first, second = (c_files(bundle.manifest, bundle.weights, b"x") for bundle in (make_bundle(), make_bundle()))
    assert first == second


def test_the_header_of_a_windowed_model_gives_the_window() -> None:
    """The state of such a model is reset after each window; a stateful one has no window."""
    bundle = make_bundle().with_manifest(regime="windowed", window=12)
    windowed, stateful = (
        c_files(one.manifest, one.weights, None)["stream_gru_model.h"].decode() for one in (bundle, make_bundle())
    )
    assert "#define STREAM_GRU_WINDOW 12" in windowed
    assert "call stream_gru_reset after every 12 samples" in windowed
    assert "#define STREAM_GRU_WINDOW 0" in stateful
    assert "after every" not in stateful


def test_the_header_describes_every_input_and_output() -> None:
    """Sizes as macros, and each input and output by index, name and unit."""
    bundle = make_bundle(calendar=1, quantiles=(0.1, 0.5, 0.9), warm_up=20, period_s=0.25)
    header = c_files(bundle.manifest, bundle.weights, None)["stream_gru_model.h"].decode()
    for line in (
        "#define STREAM_GRU_INPUTS 5", "#define STREAM_GRU_STATE 8", "#define STREAM_GRU_OUTPUTS 27",
        "#define STREAM_GRU_HORIZON 4", "#define STREAM_GRU_QUANTILES 3", "#define STREAM_GRU_LABELS 3",
        "#define STREAM_GRU_WARM_UP 20", "#define STREAM_GRU_PERIOD_S 0.25", "x[1] 'c1', unit 'V'",
        "x[3], x[4] sine and cosine of 2 pi (t + 0) / 86400: hour_of_day", "y[12] .. y[23] target 1, 'c0'",
        "q counts the quantiles 0.1, 0.5, 0.9", "y[24] probability of 'label0'",
    ):  # fmt: skip
        assert line in header
