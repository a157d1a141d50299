"""Evaluation: scores of a model on recordings that are streamed through the pipeline, beside simple baselines."""
