"""Samples to predictions: conditioning, stepping, scoring, alarms, and the state of every stream."""
