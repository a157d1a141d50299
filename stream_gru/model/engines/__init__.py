"""Engines compute the network: one file an engine, one row in `registry.ENGINES`."""
