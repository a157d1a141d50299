"""The layers and heads of a model as C: their arrays and one function each.

Kernels are transposed, one row per unit, and split by gate: the sum of a unit is the dot product of two rows, and the
code reads like the equations.

Source: Cho et al. 2014, arXiv:1406.1078 (GRU); Hochreiter and Schmidhuber 1997 (LSTM); Elman 1990 (simple RNN).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stream_gru.core.types import F32
from stream_gru.model.manifest import Layer, Manifest

_GATES = {"gru": ("z", "r", "h"), "lstm": ("i", "f", "c", "o"), "simple_rnn": ("h",)}  # in Keras' order


def layer_arrays(layer: Layer, w: dict[str, F32]) -> list[str]:
    """The constants of a layer, ``<layer>_<kernel, recurrent or bias>_<gate>``."""
    name, arrays = layer.name, []
    for index, gate in enumerate(_GATES[layer.cell]):
        part = slice(index * layer.units, (index + 1) * layer.units)
        arrays.append(array(f"{name}_kernel_{gate}", w[f"{name}/kernel"][:, part].T))
        arrays.append(array(f"{name}_recurrent_{gate}", w[f"{name}/recurrent_kernel"][:, part].T))
        if layer.use_bias:
            both = w[f"{name}/bias"].reshape(-1, layer.gates * layer.units)[:, part]
            names = (f"{name}_bias_{gate}", f"{name}_recurrent_bias_{gate}")
            arrays += [array(bias, values) for bias, values in zip(names, both, strict=False)]
    return arrays


def layer_function(layer: Layer) -> str:
    """``void <layer>(const float in[W], float h[U])``, which advances h; of an LSTM c follows h."""
    return {"gru": _gru, "lstm": _lstm, "simple_rnn": _simple_rnn}[layer.cell](layer)


def _input(layer: Layer, gate: str) -> str:
    """Sum of a unit's gate over the inputs of the layer, as C."""
    bias = f"{layer.name}_bias_{gate}[u] + " if layer.use_bias else ""
    return f"{bias}dot({layer.name}_kernel_{gate} + u * {layer.input_size}, in, {layer.input_size})"


def _recurrent(layer: Layer, gate: str, h: str = "h") -> str:
    """Sum of a unit's gate over the last outputs of the layer, as C."""
    bias = f"{layer.name}_recurrent_bias_{gate}[u] + " if layer.use_bias and layer.reset_after else ""
    return f"{bias}dot({layer.name}_recurrent_{gate} + u * {layer.units}, {h}, {layer.units})"


def _gate(layer: Layer, gate: str, activation: str) -> str:
    return f"sg_{activation}({_input(layer, gate)}\n            + {_recurrent(layer, gate)})"


def _head(layer: Layer, title: str) -> str:
    return (
        f"/* {title}, {layer.units} units */\n"
        f"static void {layer.name}(const float in[{layer.input_size}], float h[{layer.state_size}])"
    )


def _gru(layer: Layer) -> str:
    return _gru_reset_after(layer) if layer.reset_after else _gru_reset_before(layer)


def _gru_reset_after(layer: Layer) -> str:
    u, gate = layer.units, layer.recurrent_activation
    return f"""{_head(layer, "GRU with the reset gate after the recurrent product (Keras' reset_after)")}
{{
    float z[{u}], candidate[{u}];

    for (int u = 0; u < {u}; u++) {{
        float r = {_gate(layer, "r", gate)};

        z[u] = {_gate(layer, "z", gate)};
        candidate[u] = sg_{layer.activation}({_input(layer, "h")}
            + r * ({_recurrent(layer, "h")}));
    }}
    for (int u = 0; u < {u}; u++)
        h[u] = z[u] * h[u] + (1.0f - z[u]) * candidate[u];
}}"""


def _gru_reset_before(layer: Layer) -> str:
    u, gate = layer.units, layer.recurrent_activation
    return f"""{_head(layer, "GRU with the reset gate before the recurrent product")}
{{
    float z[{u}], kept[{u}], candidate[{u}];

    for (int u = 0; u < {u}; u++) {{
        z[u] = {_gate(layer, "z", gate)};
        kept[u] = h[u] * {_gate(layer, "r", gate)};
    }}
    for (int u = 0; u < {u}; u++)
        candidate[u] = sg_{layer.activation}({_input(layer, "h")}
            + {_recurrent(layer, "h", "kept")});
    for (int u = 0; u < {u}; u++)
        h[u] = z[u] * h[u] + (1.0f - z[u]) * candidate[u];
}}"""


def _lstm(layer: Layer) -> str:
    u, gate = layer.units, layer.recurrent_activation
    return f"""{_head(layer, "LSTM; its cell follows its output in the state")}
{{
    float i[{u}], f[{u}], candidate[{u}], o[{u}], *c = h + {u};

    for (int u = 0; u < {u}; u++) {{
        i[u] = {_gate(layer, "i", gate)};
        f[u] = {_gate(layer, "f", gate)};
        candidate[u] = {_gate(layer, "c", layer.activation)};
        o[u] = {_gate(layer, "o", gate)};
    }}
    for (int u = 0; u < {u}; u++) {{
        c[u] = f[u] * c[u] + i[u] * candidate[u];
        h[u] = o[u] * sg_{layer.activation}(c[u]);
    }}
}}"""


def _simple_rnn(layer: Layer) -> str:
    u = layer.units
    return f"""{_head(layer, "Simple RNN")}
{{
    float next[{u}];

    for (int u = 0; u < {u}; u++)
        next[u] = {_gate(layer, "h", layer.activation)};
    copy(h, next, {u});
}}"""


def forecast_code(manifest: Manifest, w: dict[str, F32], units: int) -> list[str]:
    """The forecast head: arrays and ``void forecast(const float x[I], const float h[U], float y[D * H * Q])``."""
    head = manifest.forecast
    if head is None:
        return []
    targets, each = manifest.target_index, manifest.forecast_size // len(head.targets)
    arrays = [
        array("forecast_kernel", w["forecast/kernel"].T),
        array("forecast_bias", w["forecast/bias"]),
        array("forecast_mean", w["scaling/mean"][targets]),
        array("forecast_scale", w["scaling/scale"][targets]),
    ]
    last, plus = "", ""
    if head.residual:
        arrays.append(integers("forecast_input", targets))
        last = "        float last = (x[forecast_input[d]] - forecast_mean[d]) / forecast_scale[d];\n\n"
        plus = " + last"
    title = "Difference from the last value of each target" if head.residual else "Forecast of each target"
    x = f"const float x[{manifest.input_size}], " if head.residual else ""
    function = f"""/* {title} */
static void forecast({x}const float h[{units}], float y[{manifest.forecast_size}])
{{
    for (int d = 0; d < {len(targets)}; d++) {{
{last}        for (int k = d * {each}; k < (d + 1) * {each}; k++) {{
            float scaled = forecast_bias[k] + dot(forecast_kernel + k * {units}, h, {units}){plus};

            y[k] = scaled * forecast_scale[d] + forecast_mean[d];
        }}
    }}
}}"""
    return [*arrays, function]


def classes_code(manifest: Manifest, w: dict[str, F32], units: int) -> list[str]:
    """The class head: arrays and ``void classes(const float h[U], float y[L])``."""
    head = manifest.classes
    if head is None:
        return []
    bodies = {"softmax": _SOFTMAX, "sigmoid": _SIGMOID, "logistic": _LOGISTIC}
    labels = len(head.labels)
    body = bodies[head.activation].replace("<L>", str(labels)).replace("<U>", str(units)).strip("\n")
    return [
        array("classes_kernel", w["classes/kernel"].T),
        array("classes_bias", w["classes/bias"]),
        f"/* {head.activation} */\nstatic void classes(const float h[{units}], float y[{labels}])\n{{\n{body}\n}}",
    ]


_SOFTMAX = """
    float largest, sum = 0.0f;

    for (int k = 0; k < <L>; k++)
        y[k] = classes_bias[k] + dot(classes_kernel + k * <U>, h, <U>);
    largest = y[0];
    for (int k = 1; k < <L>; k++)
        if (y[k] > largest)
            largest = y[k];
    for (int k = 0; k < <L>; k++) {
        y[k] = sg_exp(y[k] - largest);
        sum += y[k];
    }
    for (int k = 0; k < <L>; k++)
        y[k] /= sum;
"""

_SIGMOID = """
    for (int k = 0; k < <L>; k++)
        y[k] = sg_sigmoid(classes_bias[k] + dot(classes_kernel + k * <U>, h, <U>));
"""

_LOGISTIC = """
    y[1] = sg_sigmoid(classes_bias[0] + dot(classes_kernel, h, <U>));
    y[0] = 1.0f - y[1];
"""


_PER_LINE = 8
_BYTES_PER_LINE = 16


def number(value: float) -> str:
    """A float literal that a compiler reads back as the same float32.

    >>> number(1 / 3), number(3)
    ('0.333333333f', '3.0f')
    """
    text = f"{float(value):.9g}"
    return f"{text}f" if "." in text or "e" in text else f"{text}.0f"


def string(text: str) -> str:
    r"""A string literal of UTF-8 bytes, in ASCII, without trigraphs.

    >>> print(string('a "b" \u00b0C?'))
    "a \"b\" \302\260C\077"
    """
    return '"' + "".join(_character(byte) for byte in text.encode("utf-8", "replace")) + '"'


def _character(byte: int) -> str:
    # Octal, because a hexadecimal escape would include the next letter; the question mark because of trigraphs.
    char = chr(byte)
    if char in '"\\':
        return f"\\{char}"
    return char if 32 <= byte < 127 and char != "?" else f"\\{byte:03o}"


def quoted(text: str) -> str:
    """A name for a comment: it cannot end the comment and holds printable characters only.

    >>> quoted('flow */ x')
    "'flow *_ x'"
    """
    printable = "".join(char if char.isprintable() and char not in "\\?" else "_" for char in text)
    return "'" + printable.replace("*/", "*_").replace("/*", "_*") + "'"


def array(name: str, values: F32, note: str = "") -> str:
    """A constant array of float; each row of a matrix starts on a new line."""
    rows = values.reshape(-1, values.shape[-1])
    lines = [line for row in rows for line in _lines([number(value) for value in row.tolist()], _PER_LINE)]
    return _array(f"static const float {name}[{values.size}]", lines, note)


def integers(name: str, values: Sequence[int]) -> str:
    """A constant array of int."""
    return _array(f"static const int {name}[{len(values)}]", _lines([str(value) for value in values], _PER_LINE))


def strings(name: str, size: str, values: Sequence[str]) -> str:
    """A constant array of strings with external linkage."""
    return _array(f"const char *const {name}[{size}]", [f"{string(value)}," for value in values])


def byte_lines(data: bytes) -> list[str]:
    """The initialisers of an array of bytes."""
    return _lines([f"0x{byte:02x}" for byte in data], _BYTES_PER_LINE)


def comment(lines: Iterable[str]) -> str:
    """A block comment; names in it must be `quoted`."""
    return "\n".join(["/*", *(f" * {line}".rstrip() for line in lines), " */"])


def _lines(items: Sequence[str], width: int) -> list[str]:
    return [", ".join(items[start : start + width]) + "," for start in range(0, len(items), width)]


def _array(declaration: str, lines: Iterable[str], note: str = "") -> str:
    head = f"/* {note} */\n" if note else ""
    return "\n".join([f"{head}{declaration} = {{", *(f"    {line}" for line in lines), "};"])
