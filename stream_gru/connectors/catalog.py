"""All names that a configuration may use: those of this package, and those of plugins."""

from __future__ import annotations

from stream_gru.config.catalog import Catalog
from stream_gru.connectors.decoders.registry import DECODERS
from stream_gru.connectors.sinks.registry import SINKS
from stream_gru.connectors.sources.registry import SOURCES
from stream_gru.model.engines.registry import ENGINES

CATALOG = Catalog(SOURCES, DECODERS, SINKS, ENGINES)
