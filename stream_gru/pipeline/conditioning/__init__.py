"""Conditioning: which samples become steps."""
