"""Handwritten digits as samples: an image is a sequence of 28 rows of 28 numbers, with the label at the last row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from stream_gru.core.errors import DataError
from stream_gru.core.types import F32, I32
from stream_gru.examples.recipes.results import RecipeResult
from stream_gru.examples.recipes.sequences import Sequences, find_arrays, label_at_end, require

LABELS = tuple("0123456789")
ROWS = 28


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``train`` and ``test`` images at most (0: all); ``validation``: training images used for validation.

    ``milestones``: numbers of updates after which the validation accuracy is printed.
    """

    train: int = 0
    validation: int = 5000
    test: int = 0
    milestones: list[int] = []


def recordings(options: Options, data_path: Path | None) -> dict[str, Sequences]:
    """The parts train, validation and test; validation is the end of the training set.  Raises DataError."""
    arrays = find_arrays("mnist", data_path)
    if arrays is None:
        from stream_gru.training.datasets import mnist

        arrays = mnist()
    x_train, y_train, x_test, y_test = require(arrays, ("x_train", "y_train", "x_test", "y_test"), "mnist.npz")
    for name, images, digits in (("train", x_train, y_train), ("test", x_test, y_test)):
        if images.shape != (len(digits), ROWS, ROWS) or not np.isin(digits, range(len(LABELS))).all():
            found = f"{images.shape} and digits of {digits.shape}, {digits.min()}..{digits.max()}"
            raise DataError(f"mnist.npz: {name}: expected images (N, {ROWS}, {ROWS}) and digits 0..9, got {found}")
    cut = len(x_train) - options.validation
    if cut < 1:
        raise DataError(f"mnist.npz: expected more than {options.validation} training images, got {len(x_train)}")
    return {
        "train": _sequences(x_train[:cut], y_train[:cut], options.train or cut),
        "validation": _sequences(x_train[cut:], y_train[cut:], options.validation),
        "test": _sequences(x_test, y_test, options.test or len(x_test)),
    }


def _sequences(images: NDArray[np.uint8], classes: NDArray[np.uint8], count: int) -> Sequences:
    values: F32 = (images[:count].reshape(-1, ROWS) / np.float32(255)).astype(np.float32)
    length = np.full(min(count, len(images)), ROWS, np.int64)
    label: I32 = label_at_end(classes[:count].astype(np.int32), length)
    return Sequences(values, length, label)


def report_lines(options: Options, result: RecipeResult) -> Iterator[str]:
    """The validation accuracy after each milestone."""
    for row in result.history:
        if row.get("updates") in options.milestones:
            yield f"after {row['updates']:,.0f} updates: validation accuracy {row['val_accuracy']:.1%}"
