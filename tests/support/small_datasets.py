"""Small stand-ins for public data sets, in their layout: what a recipe reads where the real ones are absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.types import I64


def write_digits(path: Path, train: int = 3000, test: int = 300) -> Path:
    """``mnist.npz``: the class is where a bright bar lies, with noise around it."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for part, count in (("train", train), ("test", test)):
        y = rng.integers(0, 10, count).astype(np.uint8)
        x = rng.integers(0, 40, (count, 28, 28)).astype(np.uint8)
        for image, digit in zip(x, y, strict=True):
            image[2 + 2 * digit : 5 + 2 * digit, 4:24] = 230
        arrays[f"x_{part}"], arrays[f"y_{part}"] = x, y
    np.savez(path, allow_pickle=False, **arrays)
    return path


def write_reviews(path: Path, train: int = 1200, test: int = 300) -> Path:
    """``imdb.npz``: word ranks in one array, sorted by label; the words 11 to 20 occur in positive reviews only."""
    rng = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for part, count in (("train", train), ("test", test)):
        y = np.repeat(np.array([0, 1], np.int8), count // 2)
        length: I64 = rng.integers(20, 160, count)
        words = [rng.integers(21, 12_000, size) for size in length]
        for review, good in zip(words, y, strict=True):
            at = rng.integers(0, len(review), 6)
            review[at] = rng.integers(11, 21, 6) if good else rng.integers(1, 11, 6)
            review[-1] = 15 if good else 5
        arrays |= {f"x_{part}_flat": np.concatenate(words).astype(np.int32), f"x_{part}_len": length, f"y_{part}": y}
    np.savez(path, allow_pickle=False, **arrays)
    return path
