"""Evaluation: what a model is worth on recordings, run as a stream through the pipeline, beside simple baselines."""
