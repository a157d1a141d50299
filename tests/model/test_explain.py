"""The explanation of cells: its equations and formulas are correct."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from stream_gru.cli.bundle import describe
from stream_gru.cli.main import run_cli
from stream_gru.config.field_types import Cell
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle, write_bundle
from stream_gru.model.engines.numpy_engine import ACTIVATIONS, make_cell
from stream_gru.model.explain import blocks_of, count_arrays, equations_of, explain, explanation_lines, parameter_rows
from stream_gru.model.manifest import Layer, parameter_formula
from tests.support.models import make_bundle
from tests.support.paths import BUNDLE

KINDS: list[tuple[Cell, bool]] = [("gru", True), ("gru", False), ("simple_rnn", False), ("lstm", False)]
SIZES = list(itertools.product((1, 7, 32), (1, 5), (True, False)))


def one_layer_bundle(kind: tuple[Cell, bool], units: int = 4, inputs: int = 3, **options: Any) -> Bundle:
    """A bundle with one layer of this kind."""
    return make_bundle(cell=kind[0], reset_after=kind[1], units=(units,), channels=inputs, targets=1, **options)


def by_equations(layer: Layer, weights: dict[str, F32], x: F32, state: F32) -> F32:
    """One step computed from the text of the printed equations and blocks."""
    u = layer.units
    kernel, recurrent = weights["recurrent_0/kernel"], weights["recurrent_0/recurrent_kernel"]
    bias = weights.get("recurrent_0/bias")
    known: dict[str, Any] = {**ACTIVATIONS, "x": x, "h": state[:, :u], "c": state[:, u:]}
    for block in blocks_of(layer):
        end = {"h'": "", "candidate": "_c"}.get(block.name, f"_{block.name}")
        columns = slice(block.first, block.last + 1)
        known |= {f"W{end}": kernel[:, columns], f"R{end}": recurrent[:, columns]}
        if bias is not None:
            known[f"b{end}"] = bias[..., columns] if bias.ndim == 1 else bias[0, columns]
            known[f"d{end}"] = None if bias.ndim == 1 else bias[1, columns]
    for equation in equations_of(layer):
        left, right = equation.replace("'", "_new").split(" = ")
        known[left] = eval(right, {}, known)  # noqa: S307 - the equations are our own
    return np.concatenate([known["h_new"], known["c_new"]], axis=1) if layer.cell == "lstm" else known["h_new"]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_equations_give_the_state_of_the_engine(kind: tuple[Cell, bool], use_bias: bool) -> None:
    """Equations, blocks of columns and rows of the bias, as they are printed, give the engine's next state."""
    bundle = one_layer_bundle(kind, use_bias=use_bias, activation="softsign", recurrent_activation="hard_sigmoid")
    layer, weights = bundle.manifest.layers[0], bundle.weights
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    state = rng.normal(size=(6, layer.state_size)).astype(np.float32)
    bias = weights["recurrent_0/bias"].reshape(-1, layer.gates * layer.units)[0] if use_bias else 0
    wanted = make_cell(layer, weights)(x @ weights["recurrent_0/kernel"] + bias, state)
    assert np.allclose(by_equations(layer, weights, x, state), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_an_update_gate_of_one_keeps_the_state(kind: tuple[Cell, bool]) -> None:
    """The printed meaning of z is that of the engine: 1 keeps the state, 0 replaces it."""
    bundle = one_layer_bundle(kind)
    layer, weights = bundle.manifest.layers[0], bundle.weights
    h = np.linspace(-0.9, 0.9, 4, dtype=np.float32)[None]
    cell, projected = make_cell(layer, weights), np.zeros((1, 12), np.float32)
    for z, kept in ((60.0, True), (-60.0, False)):
        projected[:, blocks_of(layer)[0].first : blocks_of(layer)[0].last + 1] = z
        assert np.allclose(cell(projected, h), h) == kept
    assert "z near 1 KEEPS the old state" in "\n".join(explanation_lines(explain(bundle)))


@pytest.mark.parametrize("kind", KINDS)
def test_formulas_count_the_arrays_of_a_bundle(kind: tuple[Cell, bool]) -> None:
    """The formula gives the number of weights in a bundle, for every size, with and without bias."""
    for units, inputs, use_bias in SIZES:
        bundle = one_layer_bundle(kind, units, inputs, use_bias=use_bias)
        layer = bundle.manifest.layers[0]
        real = sum(array.size for name, array in bundle.weights.items() if name.startswith("recurrent_0/"))
        assert parameter_formula(layer)[1] == count_arrays(bundle.manifest, layer) == real


@pytest.mark.parametrize("kind", KINDS)
def test_the_text_of_a_formula_gives_its_number(kind: tuple[Cell, bool]) -> None:
    """The evaluated text of the formula equals the number beside it."""
    for units, inputs, use_bias in SIZES:
        formula, number = parameter_formula(one_layer_bundle(kind, units, inputs, use_bias=use_bias).manifest.layers[0])
        assert formula.endswith(f", U = {units}, I = {inputs}")
        text = formula.partition(",")[0].replace("U²", "U*U").replace("·", "*")
        text = re.sub(r"(\d) (?=[(U])", r"\1*", text)
        assert eval(text, {"U": units, "I": inputs}) == number  # noqa: S307 - the formula is our own


@pytest.mark.train
@pytest.mark.parametrize("kind", KINDS)
def test_formulas_count_the_parameters_of_keras_layers(kind: tuple[Cell, bool]) -> None:
    """Keras counts the same number for the layer, for every size, with and without bias."""
    keras = pytest.importorskip("keras")
    for units, inputs, use_bias in SIZES:
        maker = {"gru": keras.layers.GRU, "simple_rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM}[kind[0]]
        made = maker(units, use_bias=use_bias, **({"reset_after": kind[1]} if kind[0] == "gru" else {}))
        made.build((None, None, inputs))
        layer = one_layer_bundle(kind, units, inputs, use_bias=use_bias).manifest.layers[0]
        assert parameter_formula(layer)[1] == made.count_params()


def test_each_layer_is_compared_with_the_other_kinds() -> None:
    """All four kinds have the layer's U and I; only the kind of the bundle has arrays to count."""
    bundle = make_bundle(cell="lstm", units=(6, 5), channels=2, calendar=1)
    for one, layer in zip(explain(bundle), bundle.manifest.layers, strict=True):
        assert [variant.own for variant in one.variants] == [False, False, False, True]
        u, i = layer.units, layer.input_size
        block = u * u + u * i
        wanted = [3 * (block + 2 * u), 3 * (block + u), block + u, 4 * (block + u)]
        assert [variant.by_formula for variant in one.variants] == wanted
        assert [variant.by_count for variant in one.variants] == wanted
        assert [variant.in_bundle for variant in one.variants] == [None, None, None, wanted[3]]
    assert [one.inputs for one in explain(bundle)] == ["4 (2 quantities + 2 of the calendar)", "6 units of recurrent_0"]


def test_without_a_bias_none_is_mentioned() -> None:
    """Equations and notes name only parts of the layer."""
    layers = explain(one_layer_bundle(("gru", True), use_bias=False))
    own = next(variant for variant in layers[0].variants if variant.own)
    assert own.equations[0] == "z = sigmoid(x @ W_z + h @ R_z)"
    assert not any("bias" in note for note in own.notes)
    assert own.formula == "3 (U² + U·I), U = 4, I = 3"


def test_the_default_view_compares_and_explain_adds_the_equations(capsys: pytest.CaptureFixture[str]) -> None:
    """The table of the four kinds is always printed; equations and gates with --explain."""
    assert run_cli(["inspect", str(BUNDLE)]) == 0
    short = capsys.readouterr().out
    assert run_cli(["inspect", str(BUNDLE), "--explain"]) == 0
    long = capsys.readouterr().out
    own = "GRU, reset_after = true  3: z, r, candidate  40  3 (U² + U·I + 2 U)  5,520  5,520  5,520"
    other = "LSTM  4: i, f, candidate, o  80  4 (U² + U·I + U)  7,200  7,200"
    for text in (short, long):
        assert {own, other} <= {re.sub(" {2,}", "  ", line) for line in text.splitlines()}
    assert "h' = z * h + (1 - z) * candidate" in long
    assert "r          columns 40..79   reset gate" in long
    assert "instead of recurrent_0: LSTM" in long
    assert "h' = " not in short
    assert "--explain" in short


def test_json_has_the_explanation(capsys: pytest.CaptureFixture[str]) -> None:
    """Equations, blocks, roles, formulas and counts of the four kinds."""
    assert run_cli(["inspect", str(BUNDLE), "--json"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    own = cell["variants"][0]
    assert (cell["layer"], cell["units"], cell["inputs"]) == ("recurrent_0", 40, "4 (4 quantities)")
    assert (own["own"], own["by_formula"], own["by_count"], own["in_bundle"]) == (True, 5520, 5520, 5520)
    assert own["equations"][-1] == "h' = z * h + (1 - z) * candidate"
    assert [(block["name"], block["first"], block["last"]) for block in own["blocks"]] == [
        ("z", 0, 39),
        ("r", 40, 79),
        ("candidate", 80, 119),
    ]


def test_categories_and_a_single_logit_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Learnt vectors are counted, one-hot inputs are named, and the head of two labels has one column."""
    made = make_bundle(
        channels=2, targets=2, categories=(9, 4), embedding=5, labels=2, class_activation="logistic", units=(6,)
    )
    written = write_bundle(tmp_path / "b", made.manifest, made.weights, {})
    rows = {row["layer"]: row for row in parameter_rows(written)}
    assert rows["embedding_2"]["formula"] == "N·E, N = 9, E = 5"
    assert rows["classes"]["formula"] == "U·K + K, U = 6, K = 1"
    assert all(row["by_formula"] == row["by_count"] for row in rows.values())
    counted = sum(array.size for name, array in written.weights.items() if not name.startswith("scaling/"))
    assert sum(row["by_count"] for row in rows.values()) == counted
    assert run_cli(["inspect", str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    for words in (
        "k0: 9 categories, each embedded as a learnt vector of 5 numbers",
        "k1: 4 categories, one-hot: one input each, no parameters",
        "I = 11 (2 quantities + 5 vector of k0 + 4 one-hot of k1)",
        "one logit: its sigmoid is the probability of label1, the rest is label0",
        "categories 0..8",
    ):
        assert words in text


def test_labels_that_are_not_printable_are_escaped() -> None:
    """A space and a line end among the labels do not tear the line."""
    made = make_bundle(channels=0, categories=(3,), labels=3, horizon=0)
    assert made.manifest.classes is not None
    named = made.with_manifest(classes=replace(made.manifest.classes, labels=["a", " ", "\n"]))
    assert "classes     a, ' ', '\\n' (softmax)" in describe(named)
