"""SenML in JSON: ``[{"bn": "dev1:", "bt": 1714564800, "n": "temp", "u": "Cel", "v": 21.5}, {"n": "hum", "v": 40}]``.

Source: RFC 8428, "Sensor Measurement Lists".  A pack is resolved: base name, time, unit and value are carried from
record to record.  Times are seconds, below 2**28 they are relative to the arrival.  Records of one stream and time are
one sample, the last one counts where a channel comes twice.

Streams: a resolved name that is a channel's field belongs to the message's own stream; else the last part of the name,
after ``:``, ``/`` or ``.``, is the field, and the part before it is the stream.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from stream_gru.connectors.decoders.field_map import OWN_TIME, Fields
from stream_gru.connectors.decoders.json_decoders import documents
from stream_gru.connectors.decoders.record_batch import MAX_RECORDS, Record, RecordBatch, RecordDecoder, limit_fault
from stream_gru.core.types import NS_PER_S, DropReason, RawMessage

_VERSION = 10
_RELATIVE_BELOW_NS = 2**28 * NS_PER_S
# Far beyond any instant; a float of this size is a whole number.
_FARTHEST_S = 2**62
_KINDS: dict[str, tuple[type, ...]] = {
    "bn": (str,), "bt": (int, float), "bu": (str,), "bv": (int, float), "bs": (int, float), "bver": (int,),
    "n": (str,), "u": (str,), "v": (int, float), "vs": (str,), "vb": (bool,), "vd": (str,), "s": (int, float),
    "t": (int, float), "ut": (int, float),
}  # fmt: skip
_BASE = frozenset({"bn", "bt", "bu", "bv", "bs", "bver"})
_VALUES = ("v", "vs", "vb", "vd")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9:./_-]*", re.ASCII)

# The stream, the sample or why there is none, and the number of its first record in the pack; 0 for the whole pack.
_Sample = tuple[str, Record | DropReason, int]
_Value = tuple[str, int | None, str, object]


class _PackRejected(Exception):
    """A fault that makes the rest of the pack unreadable: the whole pack is one reject."""

    def __init__(self, reason: DropReason) -> None:
        self.reason = reason


class _Base:
    """The base fields of the records so far, which apply to those after them."""

    __slots__ = ("name", "time_ns", "unit", "value")

    def __init__(self) -> None:
        self.name, self.unit = "", None
        self.time_ns: int | None = None
        self.value: Any = 0

    def take(self, record: dict[str, Any]) -> None:
        """Take the base fields of a record whose types have been checked."""
        self.name = record.get("bn", self.name)
        self.unit = record.get("bu", self.unit)
        self.value = record.get("bv", self.value)
        if "bt" in record:
            self.time_ns = _nanoseconds(record["bt"])


class SenmlDecoder(RecordDecoder):
    """Reads messages whose payload is a pack, or a lone record, or one of these a line.

    A record of a wrong type, name or unit rejects only itself; a wrong base field, a version above 10 or an unknown
    label ending in ``_`` (RFC 8428 section 4.4: it must be understood) rejects its pack.
    """

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields.with_own_time())
        self._named = frozenset(self.resolver.fields.named)
        self._units = {column: unit for column, unit in zip(fields.columns, fields.units, strict=False) if unit}
        self._boot = fields.clock == "boot"
        self._decoder = msgspec.json.Decoder(list[Any] | dict[str, Any])

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the samples of each pack."""
        for found, line in documents(self._decoder, message, batch):
            if isinstance(found, DropReason):
                batch.reject(found, message, line)
                continue
            pack = [found] if isinstance(found, dict) else found
            for stream, sample, number in self._samples(pack, message.arrival_ns):
                batch.add(sample, message, line or (-number if pack is found else 0), key=stream or None)

    def _samples(self, pack: list[Any], arrival_ns: int) -> Iterator[_Sample]:
        """Yield the reasons of rejected records, then the samples of a pack, in the order of their first records."""
        if len(pack) > MAX_RECORDS:
            yield "", DropReason.TOO_LARGE, 0
            return
        try:
            faults = list(map(_fault, pack))
        except _PackRejected as rejected:
            yield "", rejected.reason, 0
            return
        samples: dict[tuple[str, int | None], tuple[Record, int]] = {}
        base = _Base()
        empty = True
        for number, (record, fault) in enumerate(zip(pack, faults, strict=True), 1):
            if type(record) is dict:
                base.take(record)
            found = fault or self._resolve(record, base, arrival_ns)
            if isinstance(found, DropReason):
                yield "", found, number
            elif found is not None:
                stream, time_ns, field, value = found
                samples.setdefault((stream, time_ns), ({OWN_TIME: time_ns}, number))[0][field] = value
            empty = empty and found is None
        if empty:
            yield "", DropReason.MISSING_FIELD, 0
        yield from ((stream, sample, number) for (stream, _), (sample, number) in samples.items())

    def _resolve(self, record: dict[str, Any], base: _Base, arrival_ns: int) -> _Value | DropReason | None:
        """(stream, time, field, value) of a record; None for one without a wanted field."""
        values = [label for label in _VALUES if label in record]
        if not values and "s" not in record and "n" not in record:
            return None  # base fields only
        if len(values) > 1:
            return DropReason.PARSE
        name = base.name + record.get("n", "")
        if not _NAME.fullmatch(name):
            return DropReason.PARSE if name else DropReason.MISSING_FIELD
        stream, field = self._place(name)
        if field not in self._named:
            return None
        value = record[values[0]] if values else None
        if field in self.resolver.columns:
            unit, wanted = record.get("u", base.unit), self._units.get(field)
            if (values and values[0] != "v") or (wanted and unit and unit != wanted):
                return DropReason.TYPE
            if base.value and value is not None:
                try:
                    value += base.value
                except OverflowError:  # a whole number that no float64 holds, and a fraction
                    return DropReason.OUT_OF_RANGE
                if value in (math.inf, -math.inf):
                    return DropReason.OUT_OF_RANGE
        return stream, self._time_ns(record, base, arrival_ns), field, value

    def _place(self, name: str) -> tuple[str, str]:
        """(stream, field) of a resolved name; an empty stream is the message's own."""
        if name in self._named:
            return "", name
        end = max(map(name.rfind, ":/."))
        return name[: max(end, 0)], name[end + 1 :]

    def _time_ns(self, record: dict[str, Any], base: _Base, arrival_ns: int) -> int | None:
        """Nanoseconds since the epoch; None where the time is relative to an arrival that is unknown."""
        time_ns = base.time_ns
        if "t" in record:
            time_ns = (time_ns or 0) + _nanoseconds(record["t"])
        if self._boot:
            return time_ns
        time_ns = time_ns or 0
        if time_ns >= _RELATIVE_BELOW_NS:
            return time_ns
        return arrival_ns + time_ns if arrival_ns else None


def _fault(record: object) -> DropReason | None:
    """The reason to reject a record; None for a good one.  Raises _PackRejected when its pack cannot be used."""
    if type(record) is not dict:
        return DropReason.TYPE
    beyond = limit_fault(record)
    if beyond is not None:
        raise _PackRejected(beyond)
    fault = None
    for label, value in record.items():
        kinds = _KINDS.get(label)
        if kinds is None:
            if label[-1:] == "_":
                raise _PackRejected(DropReason.PARSE)
        elif type(value) not in kinds:
            if label in _BASE:
                raise _PackRejected(DropReason.TYPE)
            fault = DropReason.TYPE
    if record.get("bver", _VERSION) > _VERSION:
        raise _PackRejected(DropReason.PARSE)
    return fault


def _nanoseconds(seconds: float) -> int:
    if isinstance(seconds, int):
        return max(-_FARTHEST_S, min(seconds, _FARTHEST_S)) * NS_PER_S
    whole = math.floor(max(-_FARTHEST_S, min(seconds, _FARTHEST_S)))
    return whole * NS_PER_S + round((seconds - whole) * NS_PER_S if abs(whole) < _FARTHEST_S else 0)
