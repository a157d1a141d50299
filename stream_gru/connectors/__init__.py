"""Connectors: sources, decoders and sinks."""
