"""Film reviews as samples: one word a sample, the verdict stands at a review's last word.

Words are numbered as Keras does: 0 padding, 1 the start of a review, 2 a word outside the vocabulary, then the words by
their frequency.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stream_gru.core.errors import DataError
from stream_gru.core.types import I32, I64
from stream_gru.examples.recipes.data_files import find_arrays, require
from stream_gru.examples.recipes.results import Outcome
from stream_gru.examples.recipes.sequences import Sequences, label_at_end

LABELS = ("negative", "positive")
START, UNKNOWN, FIRST = 1, 2, 3


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``words`` numbers that are used, ``length`` words of a review, counted from its end.

    ``pad``: shorter reviews get zeros in front; ``every``: in training the verdict stands at every word;
    ``validation``: how many of the training reviews are kept aside; ``train``, ``test`` reviews at most (0: all).
    """

    words: int = 10_000
    length: int = 100
    pad: bool = True
    every: bool = False
    train: int = 0
    validation: int = 2500
    test: int = 0


def recordings(options: Options, place: Path | None) -> dict[str, Sequences]:
    """The parts train, validation and test; validation is drawn from the training set.  Raises DataError."""
    arrays = find_arrays("imdb", place)
    if arrays is None:
        from stream_gru.training.datasets import imdb

        arrays = imdb()
    parts = {}
    for part in ("train", "test"):
        names = (f"x_{part}_flat", f"x_{part}_len", f"y_{part}")
        flat, length, verdict = require(arrays, names, "imdb.npz")
        if length.sum() != len(flat) or len(length) != len(verdict) or not np.isin(verdict, (0, 1)).all():
            sizes = f"{len(flat)} words, lengths of {length.sum()}, {len(length)} reviews, {len(verdict)} verdicts"
            raise DataError(f"imdb.npz: {part}: expected words end to end and verdicts 0 or 1, got {sizes}")
        parts[part] = flat, length.astype(np.int64), verdict.astype(np.int32)
    if len(parts["train"][1]) <= options.validation:
        raise DataError(f"imdb.npz: expected more than {options.validation} reviews to train on")
    # The files are sorted by verdict.
    order = np.random.default_rng(0).permutation(len(parts["train"][1]))
    kept, learnt = order[: options.validation], order[options.validation :]
    chosen = np.random.default_rng(1).permutation(len(parts["test"][1]))
    return {
        "train": _sequences(options, *parts["train"], learnt[: options.train or None], options.every),
        "validation": _sequences(options, *parts["train"], kept),
        "test": _sequences(options, *parts["test"], chosen[: options.test or None]),
    }


def _sequences(
    options: Options, flat: NDArray[np.int32], length: I64, verdict: I32, chosen: I64, every: bool = False
) -> Sequences:
    ends = np.cumsum(length)
    words = [_words(options, flat[ends[i] - length[i] : ends[i]]) for i in chosen]
    lengths = np.array([len(review) for review in words], np.int64)
    label = np.repeat(verdict[chosen], lengths) if every else label_at_end(verdict[chosen], lengths)
    return Sequences(np.concatenate(words).astype(np.float32)[:, None], lengths, label)


def _words(options: Options, ranks: NDArray[np.int32]) -> NDArray[np.int32]:
    """One review by Keras' numbers, cut or padded in front."""
    numbers = ranks + FIRST
    numbers = np.where(numbers < options.words, numbers, UNKNOWN)
    numbers = np.concatenate([[START], numbers])[-options.length :]
    if options.pad:
        numbers = np.pad(numbers, (options.length - len(numbers), 0))
    return numbers.astype(np.int32)


def findings(options: Options, outcome: Outcome) -> Iterator[str]:
    """Nothing besides what every recipe tells."""
    yield from ()
