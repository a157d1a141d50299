"""Decoders: bytes to samples, one format a file.

To add one: a module with a class that takes a `Fields` and fulfils `stream_gru.core.protocols.Decoder`, and a row here,
or an entry point in another distribution; see docs/contributing/add-a-decoder.md.
"""

from __future__ import annotations

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.errors import ConfigError
from stream_gru.core.plugins import Registry
from stream_gru.core.protocols import Decoder

DECODERS = Registry(
    "decoder",
    "format",
    {
        "csv": "stream_gru.connectors.decoders.csv_decoders:CsvDecoder",
        "jsonl": "stream_gru.connectors.decoders.json_decoders:JsonLinesDecoder",
        "parquet": "stream_gru.connectors.decoders.parquet:ArrowDecoder",
        "json": "stream_gru.connectors.decoders.json_decoders:JsonDecoder",
        "json_array": "stream_gru.connectors.decoders.json_decoders:JsonArrayDecoder",
        "json_vector": "stream_gru.connectors.decoders.json_decoders:JsonVectorDecoder",
        "plotter": "stream_gru.connectors.decoders.plotter:PlotterDecoder",
        "line_protocol": "stream_gru.connectors.decoders.line_protocol:LineProtocolDecoder",
        "senml": "stream_gru.connectors.decoders.senml:SenmlDecoder",
        "cbor": "stream_gru.connectors.decoders.cbor:CborDecoder",
        "binary": "stream_gru.connectors.decoders.binary:BinaryDecoder",
        "number": "stream_gru.connectors.decoders.number:NumberDecoder",
    },
    packages={
        "parquet": "pip install 'stream-gru[parquet]'",
        "cbor": "pip install 'stream-gru[binary]'",
        "binary": "pip install 'stream-gru[binary]'",
    },
)


def load_decoder(name: str, fields: Fields) -> Decoder:
    """Return the decoder called ``name``.  Raises ConfigError when it is unknown or cannot be loaded."""
    decoder = DECODERS.build(name, fields)
    if not isinstance(decoder, Decoder):
        raise ConfigError(f"decoder: {name}: expected an object that fulfils Decoder, got {decoder!r:.100}")
    return decoder
