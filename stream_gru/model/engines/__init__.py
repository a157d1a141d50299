"""Engines compute the network: one file per engine, one row in `registry.ENGINES`."""
