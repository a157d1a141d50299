"""Public data sets through Keras' own loaders, which download them, check a hash and cache a copy."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from stream_gru.core.errors import DataError

Arrays = dict[str, NDArray[Any]]


def mnist() -> Arrays:
    """Digits: x_train (60000, 28, 28) uint8, y_train (60000,), x_test (10000, 28, 28), y_test.  Raises DataError."""
    return _named(_load("mnist", {}))


def imdb() -> Arrays:
    """Reviews as ranks of words, 1 the most frequent, without Keras' offset, concatenated.

    x_train_flat, x_train_len (25000,), y_train, and the same for test.  Raises DataError.
    """
    (x_train, y_train), (x_test, y_test) = _load("imdb", {"start_char": None, "index_from": 0})
    arrays: Arrays = {"y_train": y_train, "y_test": y_test}
    for part, reviews in (("train", x_train), ("test", x_test)):
        arrays[f"x_{part}_flat"] = np.concatenate([np.asarray(review, np.int64) for review in reviews])
        arrays[f"x_{part}_len"] = np.array([len(review) for review in reviews], np.int64)
    return arrays


def _load(name: str, options: dict[str, Any]) -> Any:
    try:
        return getattr(keras.datasets, name).load_data(**options)
    except Exception as error:  # Keras wraps network errors in a bare Exception
        raise DataError(
            f"{name}: cannot be downloaded ({error}); pass a local {name}.npz with --data,"
            " or set STREAM_GRU_DATA to its folder"
        ) from error


def _named(parts: Any) -> Arrays:
    (x_train, y_train), (x_test, y_test) = parts
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
