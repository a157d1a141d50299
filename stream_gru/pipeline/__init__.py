"""Samples in, predictions out: conditioning, stepping, scoring."""
