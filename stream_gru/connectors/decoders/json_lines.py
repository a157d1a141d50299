"""JSON lines: one object a line, ``{"time": ..., "flow": 41.2, ...}``; null and absent keys mean missing."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.json_object import parsed
from stream_gru.connectors.decoders.record_batch import Records, Shape
from stream_gru.connectors.decoders.text import decoded_lines
from stream_gru.core.types import RawMessage, SampleBatch


class JsonLinesDecoder:
    """Reads messages whose payload is whole lines of JSON objects; blank lines are nothing."""

    def __init__(self, fields: Fields) -> None:
        self._shape = Shape(fields)
        self._decoder = msgspec.json.Decoder(dict[str, object])

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        records = Records(self._shape)
        for message in raw:
            if records.faulty(message):
                continue
            lines, rejected = decoded_lines(message)
            records.drop_all(rejected)
            for line in lines:
                if line and not line.isspace():
                    # Windows tools begin files with the mark.
                    record = parsed(self._decoder, line.removeprefix("\ufeff"))
                    records.add(record, message)
        return records.batch()
