"""Sinks: where predictions go, one kind a module; the form of a row is an encoder's business.

To add one: a module with a table (a subclass of `stream_gru.config.connector.SinkTable`) and a class that fulfils
`stream_gru.core.protocols.Sink`, and a row here, or an entry point in another distribution; see
docs/contributing/add-a-sink.md.
"""

from __future__ import annotations

from stream_gru.config.connector import SinkContext, SinkTable
from stream_gru.core.plugins import Registry
from stream_gru.core.protocols import Sink

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
