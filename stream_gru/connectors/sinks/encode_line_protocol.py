r"""Rows as InfluxDB line protocol, for InfluxDB, Telegraf and VictoriaMetrics.

    stream_gru,stream=pump-7,model=3f2a flow_1=2.5,flow_1_lower=2.1,flow_1_upper=2.9,class="normal",steps=9i 1772323200…

Source: docs.influxdata.com, "Line protocol": in names and tags a comma, a space and (but for the measurement) an equals
sign have a backslash before them, in text a quote and a backslash.

Decision: a backslash in a name or tag is doubled, which readers take as one; otherwise it would escape the comma or
space after it.  A line end, which cannot be written, becomes a space.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import orjson

from stream_gru.core.prediction import label_of, statuses
from stream_gru.core.types import F32, OutputSpec, PredictionBatch

_NAME = str.maketrans({"\\": r"\\", ",": r"\,", " ": r"\ ", "=": r"\=", "\n": r"\ ", "\r": r"\ "})
_MEASUREMENT = str.maketrans({"\\": r"\\", ",": r"\,", " ": r"\ ", "\n": r"\ ", "\r": r"\ "})
_TEXT = str.maketrans({"\\": r"\\", '"': r"\"", "\n": " ", "\r": " "})


class LineEncoder:
    """Encodes batches as lines of ``measurement``, tagged with stream and model.

    Fields: each target and horizon (``flow_1``, ``flow_1_lower``, ``flow_1_upper``, ``flow_2`` …), ``class`` (several
    joined by ``|``), ``p_<label>``, ``alarm``, ``status`` and ``steps``.  What is no number is left out.
    """

    def __init__(self, measurement: str = "stream_gru") -> None:
        self.form = f"line_protocol {measurement}"
        self._measurement = measurement.translate(_MEASUREMENT).encode()

    def header(self, spec: OutputSpec, alarm: bool = False) -> bytes:
        """Line protocol needs no header."""
        return b""

    def encode(self, batch: PredictionBatch) -> bytes:
        """Return all rows, each ending in a line end; times are nanoseconds."""
        if not len(batch):
            return b""
        model = batch.spec.model_id.translate(_NAME).encode()
        heads = [
            b"%b,stream=%b,model=%b " % (self._measurement, name.translate(_NAME).encode(), model)
            for name in batch.stream_names
        ]
        columns = zip(batch.stream_index.tolist(), _numbers(batch), _words(batch), batch.time_ns.tolist(), strict=True)
        return b"".join(
            [b"%b%b%b %d\n" % (heads[stream], numbers, words, time) for stream, numbers, words, time in columns]
        )


def _numbers(batch: PredictionBatch) -> list[bytes]:
    """Forecasts, intervals and probabilities of each row as fields, each followed by a comma."""
    spec = batch.spec
    parts = [] if batch.forecast is None else [batch.forecast]
    parts += [] if batch.lower is None or batch.upper is None else [batch.lower, batch.upper]
    tables = [] if not parts else [np.stack(parts, axis=-1).reshape(len(batch), -1)]
    tables += [] if batch.probabilities is None else [batch.probabilities]
    if not tables or not (table := np.concatenate(tables, axis=1)).size:
        return [b""] * len(batch)
    keys = _keys(spec, len(parts), batch.probabilities is not None)
    return [
        b"".join([key + number + b"," for key, number in zip(keys, row.split(b","), strict=True) if number != b"null"])
        for row in _dump(table)
    ]


def _dump(table: F32) -> list[bytes]:
    return orjson.dumps(np.ascontiguousarray(table), option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")


@lru_cache(maxsize=16)
def _keys(spec: OutputSpec, parts: int, classes: bool) -> list[bytes]:
    """Names of the columns of numbers, each with its equals sign."""
    names = []
    if parts:
        for target in spec.targets:
            for h in range(1, spec.horizon + 1):
                names += [f"{target}_{h}{end}" for end in ("", "_lower", "_upper")[:parts]]
    names += [f"p_{label}" for label in spec.labels] if classes else []
    return [f"{name.translate(_NAME)}=".encode() for name in names]


def _words(batch: PredictionBatch) -> list[bytes]:
    """Class, alarm, status and steps of each row as fields."""
    classes = _class_fields(batch)
    alarms = [b""] * len(batch)
    if batch.alarm is not None:
        alarms = [b"alarm=true," if alarm else b"alarm=false," for alarm in batch.alarm.tolist()]
    tails = [
        b'status="%b",steps=%di' % (status, steps)
        for status, steps in zip(statuses(batch), batch.steps_since_reset.tolist(), strict=True)
    ]
    return [b"".join(row) for row in zip(classes, alarms, tails, strict=True)]


def _class_fields(batch: PredictionBatch) -> list[bytes]:
    spec, probabilities = batch.spec, batch.probabilities
    if probabilities is None:
        return [b""] * len(batch)
    if not spec.exclusive:
        labels = [label_of(spec, row) for row in probabilities]
        return [b"" if label is None else _class_field("|".join(label)) for label in labels]
    fields = [*map(_class_field, spec.labels), b""]
    return [fields[i] for i in batch.predicted_class.tolist()]


def _class_field(text: str) -> bytes:
    return b'class="%b",' % text.translate(_TEXT).encode()
