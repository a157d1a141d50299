"""C functions of a step that do not depend on the model: dot product, exp, tanh and the activations, without a library.

Only functions that are used are emitted, so that compilers do not warn.  A copy writes through a pointer to volatile;
otherwise compilers may replace it by a call of memcpy.
Accuracy, measured against float64 over the whole range, in units in the last place: exp and expm1 1.1, tanh and sigmoid
2.5, softplus 3.5.

Source of the range reduction: W. J. Cody, W. Waite, Software Manual for the Elementary Functions, 1980, chapter 6.
"""

from __future__ import annotations

from collections.abc import Iterable

from stream_gru.model.engines.numpy_engine import SELU_ALPHA, SELU_SCALE
from stream_gru.model.export.c_layers import number

_DOT = """
/* the sum of a[i] * b[i] */
static float dot(const float *a, const float *b, int n)
{
    float sum = 0.0f;

    for (int i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}
"""

_COPY = """
/* volatile: so that compilers do not call memcpy, which may be missing */
static void copy(volatile float *to, const float *from, int n)
{
    for (int i = 0; i < n; i++)
        to[i] = from[i];
}
"""

_CATEGORY = """
/* the code of a category as a row of its table: clipped, 0 for NaN */
static int category(float code, int categories)
{
    if (!(code > 0.0f))
        return 0;
    return code < (float)categories ? (int)code : categories - 1;
}
"""

_REDUCE = """
/* x = k log(2) + r with |r| <= log(2) / 2; returns k. log(2) is subtracted in two parts, the first of few bits */
static int reduce(float x, float *r)
{
    int k = (int)(x * 1.44269504f - 0.5f);

    *r = (x - (float)k * 0.693359375f) + (float)k * 2.12194440e-4f;
    return k;
}
"""

_SERIES = """
/* exp(r) - 1 for |r| <= log(2) / 2: its Taylor series */
static float series(float r)
{
    float tail = 1.0f / 120.0f + r * (1.0f / 720.0f + r * (1.0f / 5040.0f));

    return r + r * r * (0.5f + r * (1.0f / 6.0f + r * (1.0f / 24.0f + r * tail)));
}
"""

_HALVE = """
/* value / 2^n, n >= 0 */
static float halve(float value, int n)
{
    for (; n >= 16; n -= 16)
        value *= 1.0f / 65536.0f;
    for (; n > 0; n--)
        value *= 0.5f;
    return value;
}
"""

_EXP = """
/* exp(x) for x <= 0; NaN stays NaN */
static float sg_exp(float x)
{
    float r;
    int k;

    if (x != x)
        return x;
    if (x < -104.0f)
        return 0.0f;
    k = reduce(x, &r);
    return halve(1.0f + series(r), -k);
}
"""

_EXPM1 = """
/* exp(x) - 1 for x <= 0, without cancellation near 0; NaN stays NaN */
static float sg_expm1(float x)
{
    float r, power;
    int k;

    if (x != x)
        return x;
    if (x < -17.5f)
        return -1.0f;
    k = reduce(x, &r);
    power = halve(1.0f, -k);
    return power * series(r) + (power - 1.0f);
}
"""

_TANH = """
static float sg_tanh(float x)
{
    float t;

    if (x > 9.1f)
        return 1.0f;
    if (x < -9.1f)
        return -1.0f;
    t = sg_expm1(x < 0.0f ? 2.0f * x : -2.0f * x);
    return x < 0.0f ? t / (t + 2.0f) : -t / (t + 2.0f);
}
"""

_SIGMOID = """
static float sg_sigmoid(float x)
{
    float e = sg_exp(x < 0.0f ? x : -x);

    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}
"""

_RELU = """
static float sg_relu(float x)
{
    return x < 0.0f ? 0.0f : x;
}
"""

_HARD_SIGMOID = """
static float sg_hard_sigmoid(float x)
{
    float y = x / 6.0f + 0.5f;

    return y < 0.0f ? 0.0f : y > 1.0f ? 1.0f : y;
}
"""

_SOFTSIGN = """
static float sg_softsign(float x)
{
    return x / (1.0f + (x < 0.0f ? -x : x));
}
"""

_SOFTPLUS = """
/* log(1 + exp(x)) = max(x, 0) + log(1 + e), e = exp(-|x|); log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3 */
static float sg_softplus(float x)
{
    float e = sg_exp(x < 0.0f ? x : -x), s = e / (2.0f + e), q = s * s, sum = 0.0f;

    for (int n = 15; n > 0; n -= 2)
        sum = sum * q + 1.0f / (float)n;
    return (x > 0.0f ? x : 0.0f) + 2.0f * s * sum;
}
"""

_ELU = """
static float sg_elu(float x)
{
    return x > 0.0f ? x : sg_expm1(x);
}
"""

_SELU = f"""
static float sg_selu(float x)
{{
    return {number(float(SELU_SCALE))} * (x > 0.0f ? x : {number(float(SELU_ALPHA))} * sg_expm1(x));
}}
"""

_SWISH = """
static float sg_swish(float x)
{
    return x * sg_sigmoid(x);
}
"""

_LINEAR = """
static float sg_linear(float x)
{
    return x;
}
"""

# Function -> its callees and its text; callees come first.
_FUNCTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "dot": ((), _DOT),
    "copy": ((), _COPY),
    "category": ((), _CATEGORY),
    "reduce": ((), _REDUCE),
    "series": ((), _SERIES),
    "halve": ((), _HALVE),
    "exp": (("reduce", "series", "halve"), _EXP),
    "expm1": (("reduce", "series", "halve"), _EXPM1),
    "tanh": (("expm1",), _TANH),
    "sigmoid": (("exp",), _SIGMOID),
    "relu": ((), _RELU),
    "hard_sigmoid": ((), _HARD_SIGMOID),
    "softsign": ((), _SOFTSIGN),
    "softplus": (("exp",), _SOFTPLUS),
    "elu": (("expm1",), _ELU),
    "selu": (("expm1",), _SELU),
    "swish": (("sigmoid",), _SWISH),
    "linear": ((), _LINEAR),
}


def functions(names: Iterable[str]) -> list[str]:
    """The named functions and all that they call, each once, callees first; activations by their Keras names."""
    wanted = set(names)
    for name in reversed(_FUNCTIONS):
        if name in wanted:
            wanted |= set(_FUNCTIONS[name][0])
    return [text.strip() for name, (_, text) in _FUNCTIONS.items() if name in wanted]
