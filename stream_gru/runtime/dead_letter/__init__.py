"""Rejected messages: shown in the log, kept in a file."""
