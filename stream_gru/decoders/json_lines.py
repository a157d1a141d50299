"""JSON lines: one flat object a line, ``{"time": ..., "flow": 41.2, ...}``; null and absent keys mean missing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from stream_gru.decoders.fields import Column, Fields, assemble
from stream_gru.decoders.lines import decoded_lines
from stream_gru.types import DropReason, RawMessage, SampleBatch, concatenate, empty_batch

_MAX_FIELDS = 256


class JsonLinesDecoder:
    """Reads messages whose payload is whole lines of JSON objects."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._decoder = msgspec.json.Decoder(dict[str, object])

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        return concatenate(
            [self._decode_one(message) for message in raw] or [empty_batch(len(self._fields.columns))],
            len(self._fields.columns),
        )

    def _decode_one(self, message: RawMessage) -> SampleBatch:
        lines, rejected = decoded_lines(message.payload)
        records = []
        for line in lines:
            if not line or line.isspace():
                continue
            record = self._record(line.removeprefix("\ufeff"))  # Windows tools begin files with the mark
            if isinstance(record, DropReason):
                rejected[record] = rejected.get(record, 0) + 1
            else:
                records.append(record)

        def column(name: str) -> Column | None:
            cells = [record.get(name) for record in records]
            return None if all(cell is None for cell in cells) else cells

        batch = assemble(self._fields, len(records), column, message.key)
        counted = empty_batch(len(self._fields.columns), rejected)
        return concatenate([batch, counted], len(self._fields.columns)) if rejected else batch

    def _record(self, line: str) -> dict[str, object] | DropReason:
        try:
            record = self._decoder.decode(line)
        except msgspec.ValidationError:
            return DropReason.TYPE
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, UnicodeEncodeError):
            return DropReason.PARSE
        return record if len(record) <= _MAX_FIELDS else DropReason.TOO_LARGE
