"""Sinks: where predictions go, one kind a file."""
