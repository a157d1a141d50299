"""Ingest: from messages to samples."""
