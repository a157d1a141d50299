"""Commented sample files; the explanations stand in ``train.toml`` and ``run.toml`` and nowhere else."""

from __future__ import annotations

from importlib import resources
from typing import Literal


def sample_config(purpose: Literal["train", "run"]) -> str:
    """Return a TOML text with every key for that purpose, its default and one line on what it does."""
    return resources.files("stream_gru.config").joinpath(f"{purpose}.toml").read_text(encoding="utf-8")
