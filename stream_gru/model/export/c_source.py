"""A bundle as C99: a reference step to compile or port, without a library, allocation or mutable globals.

    stream_gru_model.h    sizes, names of inputs and outputs, prototypes
    stream_gru_model.c    weights, `stream_gru_reset` and `stream_gru_step`
    stream_gru_tflite.h   the flatbuffer as an array, where the bundle has one: for LiteRT for Microcontrollers
    stream_gru_tflite.c

Equal to the engines within rounding.  The same model gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

from stream_gru.core.types import F32
from stream_gru.model.calendar_features import CYCLE_S
from stream_gru.model.export.c_layers import (
    array,
    byte_lines,
    classes_code,
    comment,
    forecast_code,
    integers,
    layer_arrays,
    layer_function,
    quoted,
    string,
    strings,
)
from stream_gru.model.export.c_math import functions
from stream_gru.model.manifest import Manifest

HEADER, SOURCE = "stream_gru_model.h", "stream_gru_model.c"
TFLITE_HEADER, TFLITE_SOURCE = "stream_gru_tflite.h", "stream_gru_tflite.c"


def c_files(manifest: Manifest, weights: dict[str, F32], tflite: bytes | None) -> dict[str, bytes]:
    """Return the files by name; ``weights`` are named and shaped as in `stream_gru.model.bundle`."""
    texts = {HEADER: _header(manifest), SOURCE: _source(manifest, weights)}
    if tflite is not None:
        texts |= {TFLITE_HEADER: _TFLITE_HEADER, TFLITE_SOURCE: _tflite_source(tflite)}
    return {name: text.strip("\n").encode() + b"\n" for name, text in texts.items()}


def _header(m: Manifest) -> str:
    sizes = {
        "INPUTS": m.input_size,
        "STATE": m.state_size,
        "OUTPUTS": m.output_size,
        "TARGETS": 0 if m.forecast is None else len(m.forecast.targets),
        "HORIZON": 0 if m.forecast is None else m.forecast.horizon,
        "QUANTILES": 0 if m.forecast is None else max(1, len(m.forecast.quantiles)),
        "LABELS": 0 if m.classes is None else len(m.classes.labels),
        "WARM_UP": m.warm_up,
        "WINDOW": m.window or 0,
        "MODEL_ID": string(m.model_id),
        "PERIOD_S": repr(float(m.period_s)),
    }
    macros = "\n".join(f"#define STREAM_GRU_{name} {value}" for name, value in sizes.items())
    return _MODEL_HEADER.format(
        about=comment(_header_comment(m)),
        macros=macros,
        names="\n".join(f"extern const char *const {name}[{size}];" for name, size, _ in _names(m)),
    )


def _header_comment(m: Manifest) -> Iterator[str]:
    """Meaning of inputs and outputs, for the comment of the header."""
    yield f"Model {quoted(m.model_id)}: one step of a recurrent network. Made by stream-gru export; do not edit."
    yield ""
    yield f"One sample every {m.period_s:g} s; the first {m.warm_up} outputs after a reset are warm-up."
    if m.window:
        yield f"Trained on windows: call stream_gru_reset after every {m.window} samples (STREAM_GRU_WINDOW)."
    yield "Engineering units in and out. Inputs must be finite: a NaN makes the state NaN until the next reset."
    yield ""
    yield "Inputs:"
    for index, channel in enumerate(m.channels):
        kind = f"category 0..{channel.categories - 1}" if channel.categories else f"unit {quoted(channel.unit)}"
        yield f"  x[{index}] {quoted(channel.name)}, {kind}"
    for index, feature in enumerate(m.calendar):
        length, offset = CYCLE_S[feature]
        first = len(m.channels) + 2 * index
        yield f"  x[{first}], x[{first + 1}] sine and cosine of 2 pi (t + {offset:.9g}) / {length:.9g}: {feature};"
        yield "      t is the sample's time in seconds since 1970-01-01 UTC"
    yield ""
    yield "Outputs:"
    yield from _outputs(m)


def _outputs(m: Manifest) -> Iterator[str]:
    if m.forecast is not None:
        h, q = m.forecast.horizon, max(1, len(m.forecast.quantiles))
        yield f"  y[(d * {h} + s) * {q} + q] forecast of target d for s + 1 samples after this one"
        if m.forecast.quantiles:
            yield f"      q counts the quantiles {', '.join(f'{value:g}' for value in m.forecast.quantiles)}"
        for index, target in enumerate(m.forecast.targets):
            first = index * h * q
            yield f"  y[{first}] .. y[{first + h * q - 1}] target {index}, {quoted(target)}"
    if m.classes is not None:
        for index, label in enumerate(m.classes.labels):
            yield f"  y[{m.forecast_size + index}] probability of {quoted(label)}"


def _names(m: Manifest) -> list[tuple[str, str, list[str]]]:
    """Arrays of strings: name, size, strings."""
    units = [*(channel.unit for channel in m.channels), *([""] * (2 * len(m.calendar)))]
    arrays = [
        ("stream_gru_input_names", "STREAM_GRU_INPUTS", m.input_names),
        ("stream_gru_input_units", "STREAM_GRU_INPUTS", units),
    ]
    if m.forecast is not None:
        arrays.append(("stream_gru_target_names", "STREAM_GRU_TARGETS", m.forecast.targets))
    if m.classes is not None:
        arrays.append(("stream_gru_label_names", "STREAM_GRU_LABELS", m.classes.labels))
    return arrays


def _source(m: Manifest, w: dict[str, F32]) -> str:
    units = m.layers[-1].units
    parts = [comment(_source_comment(m)), f'#include "{HEADER}"']
    parts += [strings(*name) for name in _names(m)]
    parts += functions(_used_functions(m))
    parts += [*_feature_arrays(m, w), _feature_function(m)]
    for layer in m.layers:
        parts += [*layer_arrays(layer, w), layer_function(layer)]
    parts += [*forecast_code(m, w, units), *classes_code(m, w, units), _RESET, _step(m)]
    return "\n\n".join(parts)


def _source_comment(m: Manifest) -> Iterator[str]:
    yield f"Model {quoted(m.model_id)}. Made by stream-gru export; do not edit. Inputs and outputs: see {HEADER}."
    yield ""
    yield "C99, no library, no allocation, no globals but constants: safe for any number of streams and threads."
    yield f"About {_stack_bytes(m)} bytes of stack. Compile without -ffast-math, which breaks the handling of NaN."


def _stack_bytes(m: Manifest) -> int:
    arrays = {"gru": 3, "lstm": 4, "simple_rnn": 1}
    return 4 * (m.feature_size + max(arrays[layer.cell] * layer.units for layer in m.layers)) + 200


def _used_functions(m: Manifest) -> set[str]:
    used = {"dot"}
    for layer in m.layers:
        used.add(layer.activation)
        used.add("copy" if layer.cell == "simple_rnn" else layer.recurrent_activation)
    if m.calendar or m.embeddings:
        used.add("copy")
    if m.categorical:
        used.add("category")
    if m.classes is not None:
        used.add("exp" if m.classes.activation == "softmax" else "sigmoid")
    return used


def _feature_arrays(m: Manifest, w: dict[str, F32]) -> list[str]:
    arrays, numeric = [], m.numeric_index
    if numeric:
        arrays.append(array("scaling_mean", w["scaling/mean"][numeric]))
        arrays.append(array("scaling_scale", w["scaling/scale"][numeric]))
        if m.categorical:
            arrays.append(integers("scaling_input", numeric))
    return arrays + [array(f"embedding_{part.index}", w[part.table]) for part in m.categorical if part.units]


def _feature_function(m: Manifest) -> str:
    body, end, numeric = [], 2 * len(m.calendar) + len(m.numeric_index), len(m.numeric_index)
    if numeric:
        index = "scaling_input[i]" if m.categorical else "i"
        body.append(f"    for (int i = 0; i < {numeric}; i++)")
        body.append(f"        features[i] = (x[{index}] - scaling_mean[i]) / scaling_scale[i];")
    if m.calendar:
        body.append(f"    copy(features + {numeric}, x + {len(m.channels)}, {2 * len(m.calendar)});")
    for part in m.categorical:
        code = f"category(x[{part.index}], {part.categories})"
        if part.units:
            body.append(f"    copy(features + {end}, embedding_{part.index} + {code} * {part.units}, {part.units});")
        else:
            body.append(f"    for (int i = 0, code = {code}; i < {part.categories}; i++)")
            body.append(f"        features[{end} + i] = i == code ? 1.0f : 0.0f;")
        end += part.width
    return "\n".join(
        [
            "/* Inputs of the first layer: scaled quantities, calendar inputs, then a vector for each category */",
            f"static void read_input(const float x[{m.input_size}], float features[{m.feature_size}])",
            "{",
            *body,
            "}",
        ]
    )


def _step(m: Manifest) -> str:
    lines, start, rows = [], 0, "features"
    for layer in m.layers:
        state = f"h + {start}" if start else "h"
        lines.append(f"    {layer.name}({rows}, {state});")
        rows, start = state, start + layer.state_size
    if m.forecast is not None:
        lines.append(f"    forecast({'x, ' if m.forecast.residual else ''}{rows}, y);")
    if m.classes is not None:
        lines.append(f"    classes({rows}, {f'y + {m.forecast_size}' if m.forecast_size else 'y'});")
    return _STEP.format(features=m.feature_size, calls="\n".join(lines))


def _tflite_source(tflite: bytes) -> str:
    return _TFLITE_SOURCE.replace("<size>", str(len(tflite))).replace(
        "<bytes>", "\n".join(f"    {line}" for line in byte_lines(tflite))
    )


_PARAMETERS = "const float x[STREAM_GRU_INPUTS], float h[STREAM_GRU_STATE], float y[STREAM_GRU_OUTPUTS]"

_MODEL_HEADER = """{about}
#ifndef STREAM_GRU_MODEL_H
#define STREAM_GRU_MODEL_H

{macros}

#ifdef __cplusplus
extern "C" {{
#endif

{names}

/* Sets h to the initial state of a stream. Every stream has its own h. */
void stream_gru_reset(float h[STREAM_GRU_STATE]);

/* Applies one sample x of a stream: advances its h and writes the outputs y. The arrays must not overlap. */
void stream_gru_step(PARAMETERS);

#ifdef __cplusplus
}}
#endif

#endif
""".replace("PARAMETERS", _PARAMETERS)

_RESET = """void stream_gru_reset(float h[STREAM_GRU_STATE])
{
    volatile float *state = h; /* volatile: so that compilers do not call memset, which may be missing */

    for (int i = 0; i < STREAM_GRU_STATE; i++)
        state[i] = 0.0f;
}"""

_STEP = """void stream_gru_step(PARAMETERS)
{{
    float features[{features}];

    read_input(x, features);
{calls}
}}""".replace("PARAMETERS", _PARAMETERS)

_TFLITE_HEADER = """
/* The bundle's flatbuffer with the signatures step and scan; made by stream-gru export; do not edit. */
#ifndef STREAM_GRU_TFLITE_H
#define STREAM_GRU_TFLITE_H

#ifdef __cplusplus
extern "C" {
#endif

extern const unsigned char stream_gru_tflite[]; /* aligned to 16 bytes */
extern const unsigned long stream_gru_tflite_size;

#ifdef __cplusplus
}
#endif

#endif
"""

_TFLITE_SOURCE = f"""
#include "{TFLITE_HEADER}"

#ifndef STREAM_GRU_ALIGNED
#if defined(__cplusplus) && __cplusplus >= 201103L
#define STREAM_GRU_ALIGNED alignas(16)
#elif defined(__GNUC__)
#define STREAM_GRU_ALIGNED __attribute__((aligned(16)))
#elif defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define STREAM_GRU_ALIGNED _Alignas(16)
#else
#error "define STREAM_GRU_ALIGNED as this compiler's attribute for alignment to 16 bytes"
#endif
#endif

const unsigned long stream_gru_tflite_size = <size>ul;

STREAM_GRU_ALIGNED const unsigned char stream_gru_tflite[] = {{
<bytes>
}};
"""
