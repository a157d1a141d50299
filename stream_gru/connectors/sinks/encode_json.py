"""Encodes outputs as JSON lines, a batch at a time.

One call writes all numbers of a column, which are then cut into rows: a call costs more than the numbers of a row.  The
bytes of a row do not depend on its batch.

Decision: the ``id`` of a row is stream and event time, not stream and step: steps restart at every reset, a time comes
once.  So an output that is sent again, also after a crash, keeps its id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import orjson

from stream_gru.core.prediction import label_of, statuses
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import F32, OutputSpec, PredictionBatch, ResetReason

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
