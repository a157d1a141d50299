"""Conditioning: samples become steps, in order of event time, without gaps and invalid values."""
