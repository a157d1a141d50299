"""Types of values that a configuration holds, with their ranges and what an error says was expected.

``extra={"expected": ...}`` is the expectation in an error, ``extra={"registry": ...}`` marks a name of a registry of
`stream_gru.config.connector`; ``description`` is for the reference and the sample files.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
# Some thirty years: nanoseconds of it are far from the end of 64 bits.
Seconds = Annotated[float, Meta(gt=0, le=1_000_000_000)]
# Event times have nanoseconds: a shorter period could not be told from none.
MIN_PERIOD_S = 1e-6
Period = Annotated[float, Meta(ge=MIN_PERIOD_S, le=1_000_000_000)]
# Keras takes 32 bits.
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Level = Annotated[float, Meta(gt=0, lt=1)]
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Address = Annotated[
    str,
    Meta(
        pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$",
        extra={"expected": 'an address and port such as "127.0.0.1:9723"'},
    ),
]

# What no number, time or quoted field can hold, and no line end of any kind.
Delimiter = Annotated[
    str,
    Meta(
        pattern=r"^[\x01-\x09\x0e-\x1b\x1f-!#-&(-*,/:-@\[-`{-\x7f]\Z",
        extra={"expected": "one ASCII character that is no letter, digit, quote, line end, '+', '-' or '.'"},
    ),
]
BrokerUrl = Annotated[
    str,
    Meta(
        pattern=r"^mqtts?://(\[[0-9a-fA-F:]+\]|[^/:@\s]+)(:\d{1,5})?/?\Z",
        extra={
            "expected": 'an address such as "mqtt://127.0.0.1:1883" or "mqtts://host:8883", without user and password'
        },
    ),
]
HttpUrl = Annotated[
    str,
    Meta(
        pattern=r"^https?://[^\s@]+\Z",
        extra={"expected": 'an address such as "http://127.0.0.1:8086/write?db=sensors"'},
    ),
]
Topic = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=1024,
        pattern=r"^[^+#\x00]+\Z",
        extra={"expected": 'a topic such as "stream_gru/{stream}/prediction", without + and #'},
    ),
]
ConnectorName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.:/-]{0,64}\Z",
        extra={"expected": "up to 64 letters, digits and _ . : / -"},
    ),
]
_LINES = ("csv", "jsonl", "json_vector", "plotter", "line_protocol", "senml")
_MESSAGES = ("json", "json_array", *_LINES, "cbor", "binary", "number")
LineFormat = Annotated[str, Meta(extra={"registry": "decoders", "built_in": _LINES})]
"""A decoder that takes several lines at once."""
LiveFormat = Annotated[str, Meta(extra={"registry": "decoders", "built_in": _MESSAGES})]
EngineName = Annotated[str, Meta(extra={"registry": "engines", "also": ("auto",)})]
TimeUnit = Literal["iso", "s", "ms", "us", "ns"]
FileFormat = Literal["auto", "csv", "jsonl", "parquet"]
Cell = Literal["gru", "lstm", "simple_rnn"]
Activation = Literal[
    "tanh", "sigmoid", "relu", "linear", "hard_sigmoid", "softsign", "softplus", "elu", "selu", "swish"
]
Initializer = Literal[
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal",
    "orthogonal", "zeros", "ones", "random_normal", "random_uniform", "truncated_normal",
]  # fmt: skip
CalendarFeature = Literal["minute_of_hour", "hour_of_day", "day_of_week", "day_of_year"]
ClassActivation = Literal["softmax", "sigmoid", "logistic"]


MAX_CATEGORIES = 1_000_000
MAX_ONE_HOT = 4096
"""Categories of a channel without an embedding: each is one input of the first layer."""


class Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all tables: immutable, and an unknown key is an error."""
