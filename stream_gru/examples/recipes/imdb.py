"""Film reviews as samples: one word per sample, the review's label at its last word.

Words are numbered as in Keras: 0 padding, 1 start of a review, 2 a word outside the vocabulary, then words by
frequency.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stream_gru.core.errors import DataError
from stream_gru.core.types import I32, I64
from stream_gru.examples.recipes.results import RecipeResult
from stream_gru.examples.recipes.sequences import Sequences, find_arrays, label_at_end, require

LABELS = ("negative", "positive")
START, UNKNOWN, FIRST = 1, 2, 3


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``words``: size of the vocabulary; ``length``: words of a review, counted from its end.

    ``pad``: shorter reviews are padded with zeros in front; ``every``: training reviews have the label at every word;
    ``validation``: training reviews used for validation; ``train``, ``test``: reviews at most (0: all).
    """

    words: int = 10_000
    length: int = 100
    pad: bool = True
    every: bool = False
    train: int = 0
    validation: int = 2500
    test: int = 0


def recordings(options: Options, data_path: Path | None) -> dict[str, Sequences]:
    """The parts train, validation and test; validation is drawn from the training set.  Raises DataError."""
    arrays = find_arrays("imdb", data_path)
    if arrays is None:
        from stream_gru.training.datasets import imdb

        arrays = imdb()
    parts = {}
    for part in ("train", "test"):
        names = (f"x_{part}_flat", f"x_{part}_len", f"y_{part}")
        flat, length, label = require(arrays, names, "imdb.npz")
        if length.sum() != len(flat) or len(length) != len(label) or not np.isin(label, (0, 1)).all():
            sizes = f"{len(flat)} words, lengths of {length.sum()}, {len(length)} reviews, {len(label)} labels"
            raise DataError(f"imdb.npz: {part}: expected concatenated words and labels 0 or 1, got {sizes}")
        parts[part] = flat, length.astype(np.int64), label.astype(np.int32)
    if len(parts["train"][1]) <= options.validation:
        raise DataError(f"imdb.npz: expected more than {options.validation} training reviews")
    # The files are sorted by label.
    order = np.random.default_rng(0).permutation(len(parts["train"][1]))
    kept, trained = order[: options.validation], order[options.validation :]
    chosen = np.random.default_rng(1).permutation(len(parts["test"][1]))
    return {
        "train": _sequences(options, *parts["train"], trained[: options.train or None], options.every),
        "validation": _sequences(options, *parts["train"], kept),
        "test": _sequences(options, *parts["test"], chosen[: options.test or None]),
    }


def _sequences(
    options: Options, flat: NDArray[np.int32], length: I64, label: I32, chosen: I64, every: bool = False
) -> Sequences:
    ends = np.cumsum(length)
    words = [_words(options, flat[ends[i] - length[i] : ends[i]]) for i in chosen]
    lengths = np.array([len(review) for review in words], np.int64)
    label = np.repeat(label[chosen], lengths) if every else label_at_end(label[chosen], lengths)
    return Sequences(np.concatenate(words).astype(np.float32)[:, None], lengths, label)


def _words(options: Options, ranks: NDArray[np.int32]) -> NDArray[np.int32]:
    """One review in Keras' numbers, cut or padded in front."""
    numbers = ranks + FIRST
    numbers = np.where(numbers < options.words, numbers, UNKNOWN)
    numbers = np.concatenate([[START], numbers])[-options.length :]
    if options.pad:
        numbers = np.pad(numbers, (options.length - len(numbers), 0))
    return numbers.astype(np.int32)


def report_lines(options: Options, result: RecipeResult) -> Iterator[str]:
    """No lines besides those of every recipe."""
    yield from ()
