"""The connectors of this package, a row each; those of other packages are found by entry points.

To add one: a module with its class, and a row here or an entry point; see docs/contributing/add-a-source.md,
add-a-decoder.md and add-a-sink.md.  Rows are imported when they are used.
"""

from __future__ import annotations

from stream_gru.config.catalog import Catalog
from stream_gru.config.connector import SinkContext, SinkTable, SourceContext, SourceTable
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.errors import ConfigError
from stream_gru.core.plugins import Registry
from stream_gru.core.protocols import Decoder, Sink, Source
from stream_gru.model.engines.registry import ENGINES

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
        "plotter": "stream_gru.connectors.decoders.number_decoders:PlotterDecoder",
        "line_protocol": "stream_gru.connectors.decoders.line_protocol:LineProtocolDecoder",
        "senml": "stream_gru.connectors.decoders.senml:SenmlDecoder",
        "cbor": "stream_gru.connectors.decoders.binary_decoders:CborDecoder",
        "binary": "stream_gru.connectors.decoders.binary_decoders:BinaryDecoder",
        "number": "stream_gru.connectors.decoders.number_decoders:NumberDecoder",
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


SINKS = Registry(
    "sink",
    "sink",
    {
        "stdout": "stream_gru.connectors.sinks.stdout:StdoutSinkConfig",
        "file": "stream_gru.connectors.sinks.file:FileSinkConfig",
        "mqtt": "stream_gru.connectors.sinks.mqtt:MqttSinkConfig",
        "influx": "stream_gru.connectors.sinks.influx:InfluxSinkConfig",
    },
)


def build_sink(table: SinkTable, context: SinkContext) -> Sink:
    """Return the sink of a table, with its throttle.  Opens nothing.  Raises ConfigError."""
    sink = table.build(context)
    if table.throttle == "none":
        return sink
    from stream_gru.connectors.sinks.throttle import Throttled

    return Throttled(sink, table.throttle, table.interval_s)


SOURCES = Registry(
    "source",
    "source",
    {
        "replay": "stream_gru.connectors.sources.files:ReplaySourceConfig",
        "stdin": "stream_gru.connectors.sources.stdin:StdinSourceConfig",
        "mqtt": "stream_gru.connectors.sources.mqtt:MqttSourceConfig",
        "serial": "stream_gru.connectors.sources.serial:SerialSourceConfig",
    },
)


def build_source(table: SourceTable, context: SourceContext, *, alone: bool = True) -> Source:
    """Return the source of a table, with a thread and a bounded queue where it needs them.  Opens nothing.

    ``alone``: there is no other source.  Raises ConfigError.
    """
    source = table.build(context)
    if table.reader == "own" or (table.reader == "loop" and alone):
        return source
    from stream_gru.connectors.sources.threaded import ThreadedSource

    return ThreadedSource(
        source,
        name=context.name,
        queue_size=table.queue_size,
        queue_bytes=table.queue_bytes,
        reconnect_max_delay_s=table.reconnect_delay_s,
        retry=table.reader == "thread",
        wakeup=context.wakeup,
    )


CATALOG = Catalog(SOURCES, DECODERS, SINKS, ENGINES)
