r"""Encoders of outputs: JSON lines, CSV (one column for each number) and InfluxDB line protocol.

One call writes all numbers of a column, which are then cut into rows: a call costs more than the numbers of a row.  The
bytes of a row do not depend on its batch.

Decision: the ``id`` of a JSON row is stream and event time, not stream and step: steps restart at every reset, a time
comes once.  So an output that is sent again, also after a crash, keeps its id.

Line protocol, for InfluxDB, Telegraf and VictoriaMetrics (docs.influxdata.com, "Line protocol"):

    stream_gru,stream=pump-7,model=3f2a flow_1=2.5,flow_1_lower=2.1,flow_1_upper=2.9,class="normal",steps=9i 1772323200…

In names and tags a comma, a space and (except in the measurement) an equals sign have a backslash before them, in
text a quote and a backslash.
Decision: a backslash in a name or tag is doubled, which readers take as one; otherwise it would escape the comma or
space after it.  A line end, which cannot be written, becomes a space.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import orjson

from stream_gru.core.prediction import label_of, status_text, statuses
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import F32, OutputSpec, PredictionBatch, ResetReason, Status


class Encoder(Protocol):
    """Encodes outputs in one form.  `encode_once` shares its result among all sinks that write this form."""

    form: str

    def header(self, spec: OutputSpec, alarm: bool = False) -> bytes:
        """The bytes before the first row; ``alarm``: rows have an alarm field."""
        ...

    def encode(self, batch: PredictionBatch) -> bytes:
        """All rows of a batch, each ending in a line end."""
        ...


def encode_once(encoder: Encoder, batch: PredictionBatch) -> bytes:
    """All rows of ``batch``; a form that another sink has asked for is not encoded again."""
    data = batch.encoded.get(encoder.form)
    if data is None:
        data = batch.encoded[encoder.form] = encoder.encode(batch)
    return data


_RESETS = [b"null" if reason is ResetReason.NONE else b'"%b"' % reason.text.encode() for reason in ResetReason]


class JsonEncoder:
    """Encodes batches as JSON lines; the keys are those of `Prediction.as_dict`, and ``seq``."""

    form = "jsonl"

    def header(self, spec: OutputSpec, alarm: bool = False) -> bytes:
        """JSON lines need no header."""
        return b""

    def encode(self, batch: PredictionBatch) -> bytes:
        """Return all rows, each ending in a line end."""
        if not len(batch):
            return b""
        heads = (batch.device_seq, batch.forecast, batch.upper, batch.probabilities, batch.alarm)
        template = _template(batch.spec, *(head is not None for head in heads))
        return b"".join([template % row for row in zip(*_columns(batch), strict=True)])


def _columns(batch: PredictionBatch) -> list[Iterable[bytes]]:
    """The values of the template, column by column."""
    spec = batch.spec
    names = [orjson.dumps(name) for name in batch.stream_names]
    stream = batch.stream_index.tolist()
    times = [text.encode() for text in format_iso(batch.time_ns)]
    begins = [name[:-1] + b"/" for name in names]
    columns: list[Iterable[bytes]] = [[begins[i] for i in stream], times, [names[i] for i in stream], times]
    if batch.device_seq is not None:
        columns.append([b"null" if n < 0 else b"%d" % n for n in batch.device_seq.tolist()])
    if batch.forecast is not None:
        columns += [_rows_of_numbers(batch.forecast[:, d]) for d in range(len(spec.targets))]
    if batch.lower is not None and batch.upper is not None:
        pairs = np.stack((batch.lower, batch.upper), axis=-1)
        columns += [_rows_of_pairs(pairs[:, d]) for d in range(len(spec.targets))]
    if batch.probabilities is not None:
        columns.append(_classes(batch, batch.probabilities))
        columns += [_numbers(batch.probabilities[:, i]) for i in range(len(spec.labels))]
    if batch.alarm is not None:
        columns.append([b"true" if alarm else b"false" for alarm in batch.alarm.tolist()])
    resets = [_RESETS[code] for code in batch.reset.tolist()]
    return [*columns, statuses(batch), resets, [b"%d" % n for n in batch.steps_since_reset.tolist()]]


@lru_cache(maxsize=64)
def _template(spec: OutputSpec, seq: bool, forecast: bool, interval: bool, classes: bool, alarm: bool) -> bytes:
    """A row with ``%b`` where a column goes."""
    parts = ['{"id":%b%b","stream":%b,"time":"%b"']
    if seq:
        parts.append(',"seq":%b')
    if forecast:
        parts.append(_keyed("forecast", spec.targets))
    if interval:
        parts.append(_keyed("interval", spec.targets) + f',"level":{spec.level!r}')
    if classes:
        parts.append(',"class":%b' + _keyed("probabilities", spec.labels))
    if alarm:
        parts.append(',"alarm":%b')
    parts.append(',"status":"%b","reset":%b,"steps":%b,"model_id":' + _escaped(spec.model_id) + "}\n")
    return "".join(parts).encode()


def _escaped(text: str) -> str:
    return orjson.dumps(text).decode().replace("%", "%%")


def _keyed(name: str, keys: Sequence[str]) -> str:
    return f',"{name}":{{' + ",".join(_escaped(key) + ":%b" for key in keys) + "}"


def _numbers(column: F32) -> list[bytes]:
    return _dump(column)[1:-1].split(b",")


def _rows_of_numbers(table: F32) -> list[bytes]:
    """(M, H) -> each row as ``[a,b,...]``."""
    return [b"[%b]" % row for row in _dump(table)[2:-2].split(b"],[")]


def _rows_of_pairs(table: F32) -> list[bytes]:
    """(M, H, 2) -> each row as ``[[lo,hi],...]``."""
    return [b"[[%b]]" % row for row in _dump(table)[3:-3].split(b"]],[[")]


def _dump(array: F32) -> bytes:
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)


def _classes(batch: PredictionBatch, probabilities: F32) -> list[bytes]:
    spec = batch.spec
    if not spec.exclusive:
        return [orjson.dumps(label_of(spec, row)) for row in probabilities]
    names = [orjson.dumps(label) for label in spec.labels] + [b"null"]
    return [names[i] for i in batch.predicted_class.tolist()]


class CsvEncoder:
    """Encodes batches as CSV lines; `header` names the columns, e.g. ``flow+1``, ``flow+1_lower``, ``p_normal``."""

    form = "csv"

    def header(self, spec: OutputSpec, alarm: bool = False) -> bytes:
        """The line with the names; ``alarm``: with a column that says whether an output is one."""
        names = ["stream", "time"]
        for target in spec.targets:
            for h in range(1, spec.horizon + 1):
                names += [f"{target}+{h}", f"{target}+{h}_lower", f"{target}+{h}_upper"]
        names += ["class", *(f"p_{label}" for label in spec.labels)] if spec.labels else []
        names += ["alarm"] if alarm else []
        return _lines([[*names, "status", "reset", "steps", "model_id"]])

    def encode(self, batch: PredictionBatch) -> bytes:
        """Return all rows, each ending in a line end; what is not a number is an empty field."""
        spec = batch.spec
        times = format_iso(batch.time_ns)
        numbers = _forecast_columns(batch)
        rows = []
        for i in range(len(batch)):
            classes: list[object] = []
            if batch.probabilities is not None:
                label = label_of(spec, batch.probabilities[i])
                text = "|".join(label) if isinstance(label, list) else label or ""
                classes = [text, *_cells(batch.probabilities[i])]
            if batch.alarm is not None:
                classes.append("true" if batch.alarm[i] else "false")
            steps = int(batch.steps_since_reset[i])
            reset = ResetReason(int(batch.reset[i]))
            status = status_text(Status(int(batch.status[i])), steps, spec.warm_up)
            tail = [status, "" if reset is ResetReason.NONE else reset.text, steps, spec.model_id]
            rows.append([batch.stream_names[batch.stream_index[i]], times[i], *_cells(numbers[i]), *classes, *tail])
        return _lines(rows)


def _forecast_columns(batch: PredictionBatch) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(M, D * H * 3): forecast, lower and upper end side by side."""
    if batch.forecast is None:
        return np.zeros((len(batch), 0), np.float32)
    nothing = np.full_like(batch.forecast, np.nan)
    parts = [part if part is not None else nothing for part in (batch.forecast, batch.lower, batch.upper)]
    return np.stack(parts, axis=-1).reshape(len(batch), 3 * batch.forecast[:1].size if len(batch) else 0)


def _cells(row: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[str]:
    return [str(number) if np.isfinite(number) else "" for number in row]


def _lines(rows: list[list[object]] | list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


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
        columns = zip(batch.stream_index.tolist(), _fields(batch), _words(batch), batch.time_ns.tolist(), strict=True)
        return b"".join(
            [b"%b%b%b %d\n" % (heads[stream], numbers, words, time) for stream, numbers, words, time in columns]
        )


def _fields(batch: PredictionBatch) -> list[bytes]:
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
        for row in _dump(table)[2:-2].split(b"],[")
    ]


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


ENCODERS: dict[str, Callable[[], Encoder]] = {"jsonl": JsonEncoder, "csv": CsvEncoder, "line_protocol": LineEncoder}
