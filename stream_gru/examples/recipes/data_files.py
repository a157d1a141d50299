"""Where the arrays of a public data set lie: a file that is given, a folder, or Keras' own download."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.errors import DataError

Arrays = Mapping[str, NDArray[Any]]


def find_arrays(name: str, place: Path | None) -> Arrays | None:
    """Arrays of ``<name>.npz``, or None when nothing local was named.

    ``place`` is the file or a folder that holds it (perhaps in a folder ``<name>``); without one, STREAM_GRU_DATA is
    looked at.  Raises DataError when a place was given and the file is not there or cannot be read without pickle.
    """
    named = place or (Path(os.environ["STREAM_GRU_DATA"]) if os.environ.get("STREAM_GRU_DATA") else None)
    if named is None:
        return None
    tried = [named] if named.is_file() else [named / f"{name}.npz", named / name / f"{name}.npz"]
    path = next((path for path in tried if path.is_file()), None)
    if path is None and place is None:
        return None
    if path is None:
        raise DataError(f"--data {place}: expected {name}.npz, or a folder with it; found none")
    try:
        with zipfile.ZipFile(path):  # numpy would take any other file for a pickle
            pass
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        hint = ""
        if "pickle" in str(error):
            hint = "; it holds pickled lists, as Keras' own file of reviews: leave out --data to have Keras read it"
        raise DataError(f"{path}: expected plain arrays in a .npz file ({error}){hint}") from error


def require(arrays: Arrays, names: tuple[str, ...], what: str) -> list[NDArray[Any]]:
    """The arrays of these names.  Raises DataError."""
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{what}: expected the arrays {', '.join(names)}; {missing[0]} is missing")
    return [arrays[name] for name in names]
