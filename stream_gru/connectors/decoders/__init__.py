"""Decoders: bytes to samples, one format a file."""
