"""Explain recurrent cells: equations, role of each gate, its columns in the arrays, number of parameters.

Layouts and equations are those of Keras.  In the equations ``x`` (I) is the input, ``h`` (U) the state before the step,
``h'`` the state after it; ``W``, ``R``, ``b`` are blocks of kernel, recurrent kernel and bias; ``@`` is the matrix
product, ``*`` the elementwise product.  A test evaluates the printed equations and compares them with an engine.

Source: Cho et al. 2014, arXiv:1406.1078 (GRU); Chung et al. 2014, arXiv:1412.3555 (GRU with the other sense of z);
Hochreiter and Schmidhuber 1997 and Gers et al. 2000 (LSTM); Elman 1990 (simple RNN).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from stream_gru.config.field_types import Cell
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import Layer, Manifest, parameter_formula, weight_shapes

_VARIANTS: tuple[tuple[Cell, bool], ...] = (("gru", True), ("gru", False), ("simple_rnn", False), ("lstm", False))
_TITLES = {
    ("gru", True): "GRU, reset_after = true",
    ("gru", False): "GRU, reset_after = false",
    ("simple_rnn", False): "SimpleRNN",
    ("lstm", False): "LSTM",
}


class Block(Struct, frozen=True, kw_only=True):
    """A block of U columns in each array of a layer: ``first`` to ``last``, both included, counted from 0."""

    name: str
    role: str
    first: int
    last: int


class CellVariant(Struct, frozen=True, kw_only=True):
    """One kind of cell with a layer's U, I, activations and ``use_bias``.

    Number of parameters: ``by_formula`` as in `parameter_formula`, ``by_count`` from the shapes of a bundle's arrays,
    ``in_bundle`` from the arrays of this bundle (None for a kind that the layer is not).  ``state``: numbers of state.
    """

    title: str
    own: bool
    equations: list[str]
    blocks: list[Block]
    notes: list[str]
    state: int
    formula: str
    by_formula: int
    by_count: int
    in_bundle: int | None


class LayerExplanation(Struct, frozen=True, kw_only=True):
    """A layer as it is and as the other kinds of cells; ``inputs`` describes its I inputs."""

    layer: str
    units: int
    inputs: str
    variants: list[CellVariant]


@dataclass(frozen=True)
class _Cell:
    """Names and roles of the blocks in the order of the columns; equations with f and g for the activations."""

    blocks: tuple[tuple[str, str], ...]
    equations: tuple[str, ...]
    notes: tuple[str, ...]


_Z_KEEPS = (
    "z near 1 KEEPS the old state, z near 0 replaces it by the candidate: so it is in Keras and in Cho et al. 2014;",
    "other papers, such as Chung et al. 2014, write h' = (1 - z) * h + z * candidate, where z near 1 replaces it.",
)
_GRU_BLOCKS = (
    ("z", "update gate: the share of the old state that is kept"),
    ("r", "reset gate: how much of the old state the candidate may see; near 0 none of it"),
    ("candidate", "the new state if nothing of the old one were kept"),
)
_GATES = ("z = g(x @ W_z + b_z + h @ R_z + d_z)", "r = g(x @ W_r + b_r + h @ R_r + d_r)")
_MIX = "h' = z * h + (1 - z) * candidate"
_CELLS: dict[tuple[Cell, bool], _Cell] = {
    ("gru", True): _Cell(
        _GRU_BLOCKS,
        (*_GATES, "candidate = f(x @ W_c + b_c + r * (h @ R_c + d_c))", _MIX),
        (
            *_Z_KEEPS,
            "r is applied after the product with the recurrent kernel, as cuDNN does.",
            "That product has its own bias: the array bias has two rows, b for the inputs, d for the product.",
        ),
    ),
    ("gru", False): _Cell(
        _GRU_BLOCKS,
        (*(gate.replace(" + d_z", "").replace(" + d_r", "") for gate in _GATES),
         "candidate = f(x @ W_c + b_c + (r * h) @ R_c)", _MIX),
        (*_Z_KEEPS, "r is applied before the product with the recurrent kernel, as in Cho et al. 2014."),
    ),
    ("simple_rnn", False): _Cell(
        (("h'", "the new state, computed at every step; there is no gate that keeps the old one"),),
        ("h' = f(x @ W + b + h @ R)",),
        (),
    ),
    ("lstm", False): _Cell(
        (
            ("i", "input gate: how much of the candidate is added to the memory"),
            ("f", "forget gate: the share of the memory that is kept; near 1 keeps it"),
            ("candidate", "what could be added to the memory"),
            ("o", "output gate: how much of the memory is shown as the state h"),
        ),
        (
            "i = g(x @ W_i + b_i + h @ R_i)",
            "f = g(x @ W_f + b_f + h @ R_f)",
            "candidate = f(x @ W_c + b_c + h @ R_c)",
            "o = g(x @ W_o + b_o + h @ R_o)",
            "c' = f * c + i * candidate",
            "h' = o * f(c')",
        ),
        ("A row of the hidden state holds h, then the memory c.",),
    ),
}  # fmt: skip


def explain(bundle: Bundle) -> list[LayerExplanation]:
    """Explain every recurrent layer of a bundle."""
    return [
        LayerExplanation(
            layer=layer.name,
            units=layer.units,
            inputs=_inputs(bundle.manifest, index),
            variants=_variants(bundle, layer),
        )
        for index, layer in enumerate(bundle.manifest.layers)
    ]


def equations_of(layer: Layer) -> list[str]:
    """The equations of a layer's cell with its activations, and without biases if it has none."""
    lines = []
    for equation in _CELLS[_kind(layer)].equations:
        left, _, right = equation.partition(" = ")
        right = right.replace("g(", f"{layer.recurrent_activation}(").replace("f(", f"{layer.activation}(")
        if not layer.use_bias:
            terms = ("b", "b_z", "b_r", "b_c", "b_i", "b_f", "b_o", "d_z", "d_r", "d_c")
            for term in sorted(terms, key=len, reverse=True):
                right = right.replace(f" + {term}", "")
        lines.append(f"{left} = {right}")
    return lines


def blocks_of(layer: Layer) -> list[Block]:
    """Columns of kernel, recurrent kernel and bias of each gate."""
    u = layer.units
    named = _CELLS[_kind(layer)].blocks
    return [Block(name=name, role=role, first=n * u, last=n * u + u - 1) for n, (name, role) in enumerate(named)]


def explanation_lines(explained: list[LayerExplanation]) -> list[str]:
    """Text of equations, gates and blocks: of each layer, then of the kinds of cells that no layer has."""
    lines = [
        "x inputs, h state before the step, h' after it; W kernel, R recurrent kernel, b and d bias, in blocks of U",
        "columns; @ matrix product, * elementwise product; a sigmoid gate lies between 0 and 1.",
    ]
    shown = set()
    for one in explained:
        own = next(variant for variant in one.variants if variant.own)
        shown.add(own.title)
        lines += ["", f"{one.layer}: {own.title}; U = {one.units}, I = {one.inputs}", *_variant_lines(own)]
    for variant in explained[0].variants:
        if variant.title not in shown:
            lines += ["", f"instead of {explained[0].layer}: {variant.title}", *_variant_lines(variant)]
    return lines


def comparison_lines(explained: list[LayerExplanation]) -> list[str]:
    """Table of the four kinds of cells for each layer."""
    lines: list[str] = []
    for one in explained:
        head = [f"{one.layer} as", "blocks", "state", "parameters", "by formula", "by count", "in the bundle"]
        rows = [
            [
                variant.title,
                f"{len(variant.blocks)}: {', '.join(block.name for block in variant.blocks)}",
                f"{variant.state:,}",
                variant.formula.partition(", ")[0],
                f"{variant.by_formula:,}",
                f"{variant.by_count:,}",
                "" if variant.in_bundle is None else f"{variant.in_bundle:,}",
            ]
            for variant in one.variants
        ]
        lines += ["", *table([head, *rows]), f"U = {one.units}, I = {one.inputs}"]
    return lines[1:]


def _variant_lines(variant: CellVariant) -> list[str]:
    width = max(len(block.name) for block in variant.blocks)
    columns = [f"{block.first}..{block.last}" for block in variant.blocks]
    return [
        *(f"    {equation}" for equation in variant.equations),
        *(
            f"    {block.name:{width}}  columns {span:{max(map(len, columns))}}  {block.role}"
            for block, span in zip(variant.blocks, columns, strict=True)
        ),
        *(f"    {note}" for note in variant.notes),
    ]


def _variants(bundle: Bundle, layer: Layer) -> list[CellVariant]:
    """The four kinds of cells instead of a layer."""
    in_bundle = sum(array.size for name, array in bundle.weights.items() if name.startswith(f"{layer.name}/"))
    found = []
    for kind in _VARIANTS:
        other = replace(layer, cell=kind[0], reset_after=kind[1])
        formula, number = parameter_formula(other)
        found.append(
            CellVariant(
                title=_TITLES[kind],
                own=kind == _kind(layer),
                equations=equations_of(other),
                blocks=blocks_of(other),
                notes=[note for note in _CELLS[kind].notes if layer.use_bias or " bias " not in note],
                state=other.state_size,
                formula=formula,
                by_formula=number,
                by_count=count_arrays(bundle.manifest, other),
                in_bundle=in_bundle if kind == _kind(layer) else None,
            )
        )
    return found


def _kind(layer: Layer) -> tuple[Cell, bool]:
    return layer.cell, layer.cell == "gru" and layer.reset_after


def count_arrays(manifest: Manifest, layer: Layer) -> int:
    """Number of parameters of a layer by the array shapes of a bundle in which it replaces the layer of its name."""
    layers = [layer if other.name == layer.name else other for other in manifest.layers]
    shapes = weight_shapes(replace(manifest, layers=layers))
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(f"{layer.name}/"))


def _inputs(manifest: Manifest, index: int) -> str:
    """Number and kind of a layer's inputs."""
    if index:
        return f"{manifest.layers[index].input_size} units of {manifest.layers[index - 1].name}"
    parts = [(len(manifest.numeric_index), "quantities"), (2 * len(manifest.calendar), "of the calendar")]
    for part in manifest.categorical:
        kind = "vector of" if part.units else "one-hot of"
        parts.append((part.width, f"{kind} {manifest.channels[part.index].name}"))
    kinds = " + ".join(f"{size} {what}" for size, what in parts if size)
    return f"{manifest.feature_size} ({kinds})"


def parameter_rows(bundle: Bundle) -> list[dict[str, Any]]:
    """One row per part of the network: parameters by formula and as counted in the weights."""
    rows: list[dict[str, Any]] = []
    manifest = bundle.manifest
    for part in manifest.categorical:
        if part.units:
            n, e = part.categories, part.units
            rows.append(_part(part.table.partition("/")[0], "embedding", f"N·E, N = {n}, E = {e}", n * e))
    for layer in manifest.layers:
        rows.append(_part(layer.name, layer.cell, *parameter_formula(layer)))
    width = manifest.layers[-1].units
    for name, size in (("forecast", manifest.forecast_size), ("classes", getattr(manifest.classes, "logits", 0))):
        if size:
            rows.append(_part(name, "dense", f"U·K + K, U = {width}, K = {size}", width * size + size))
    for row in rows:
        row["by_count"] = sum(a.size for name, a in bundle.weights.items() if name.startswith(row["layer"] + "/"))
    return rows


def _part(layer: str, cell: str, formula: str, by_formula: int) -> dict[str, Any]:
    return {"layer": layer, "cell": cell, "formula": formula, "by_formula": by_formula}


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table: first column left, others right-aligned; ``rows[0]`` is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
        if not number:
            lines.append("  ".join("-" * width for width in widths))
    return lines
