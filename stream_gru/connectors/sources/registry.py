"""Sources: where bytes come from, one kind a module.

To add one: a module with a table (a subclass of `stream_gru.config.connector.SourceTable`) and a class that fulfils
`stream_gru.core.protocols.Source`, and a row here, or an entry point in another distribution; see
docs/contributing/add-a-source.md.
"""

from __future__ import annotations

from stream_gru.config.connector import SourceContext, SourceTable
from stream_gru.core.plugins import Registry
from stream_gru.core.protocols import Source

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
    from stream_gru.connectors.sources.threaded import Queued

    return Queued(
        source,
        name=context.name,
        queue_size=table.queue_size,
        queue_bytes=table.queue_bytes,
        reconnect_max_delay_s=table.reconnect_delay_s,
        retry=table.reader == "thread",
        bell=context.wakeup,
    )
