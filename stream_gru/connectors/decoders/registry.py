"""Decoders: bytes to samples, one format a file.

To add one: a file with a class that takes a `Fields` and fulfils `stream_gru.core.protocols.Decoder`, and a row here.
"""

from __future__ import annotations

from importlib import import_module

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.errors import ConfigError
from stream_gru.core.protocols import Decoder

DECODERS = {
    "csv": "stream_gru.connectors.decoders.csv_with_header:CsvDecoder",
    "jsonl": "stream_gru.connectors.decoders.json_object:JsonLinesDecoder",
    "parquet": "stream_gru.connectors.decoders.parquet:ArrowDecoder",
    "json": "stream_gru.connectors.decoders.json_object:JsonDecoder",
    "json_array": "stream_gru.connectors.decoders.json_object:JsonArrayDecoder",
    "json_vector": "stream_gru.connectors.decoders.json_vector:JsonVectorDecoder",
    "plotter": "stream_gru.connectors.decoders.plotter:PlotterDecoder",
    "line_protocol": "stream_gru.connectors.decoders.line_protocol:LineProtocolDecoder",
    "senml": "stream_gru.connectors.decoders.senml:SenmlDecoder",
    "cbor": "stream_gru.connectors.decoders.cbor:CborDecoder",
    "binary": "stream_gru.connectors.decoders.binary:BinaryDecoder",
    "number": "stream_gru.connectors.decoders.number:NumberDecoder",
}
_INSTALL = {
    "parquet": "pip install 'stream-gru[parquet]'",
    "cbor": "pip install 'stream-gru[binary]'",
    "binary": "pip install 'stream-gru[binary]'",
}


def load_decoder(name: str, fields: Fields) -> Decoder:
    """Return the decoder called ``name``.  Raises ConfigError when it is unknown or its package is missing."""
    if name not in DECODERS:
        raise ConfigError(f"format: expected one of {', '.join(DECODERS)}, got {name!r}")
    module, _, attribute = DECODERS[name].partition(":")
    try:
        decoder: Decoder = getattr(import_module(module), attribute)(fields)
    except ImportError as error:
        hint = _INSTALL.get(name, "install stream-gru again")
        raise ConfigError(f"format: {name} cannot be read ({error}); {hint}") from error
    return decoder
