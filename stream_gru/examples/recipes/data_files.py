"""The arrays of a public data set, from a given file or folder; else Keras downloads them."""

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


def find_arrays(name: str, data_path: Path | None) -> Arrays | None:
    """Read the arrays of ``<name>.npz``; None when no local file is configured.

    ``data_path`` is the file or a folder with it (perhaps in a folder ``<name>``); None: the folder STREAM_GRU_DATA.
    Raises DataError when ``data_path`` has no such file, or when it cannot be read without pickle.
    """
    named = data_path or (Path(os.environ["STREAM_GRU_DATA"]) if os.environ.get("STREAM_GRU_DATA") else None)
    if named is None:
        return None
    tried = [named] if named.is_file() else [named / f"{name}.npz", named / name / f"{name}.npz"]
    path = next((path for path in tried if path.is_file()), None)
    if path is None and data_path is None:
        return None
    if path is None:
        raise DataError(f"--data {data_path}: expected {name}.npz, or a folder with it; found none")
    try:
        with zipfile.ZipFile(path):  # numpy treats any other file as a pickle
            pass
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        hint = ""
        if "pickle" in str(error):
            hint = "; it contains pickled lists, like the file that Keras downloads: omit --data to load it with Keras"
        raise DataError(f"{path}: expected plain arrays in a .npz file ({error}){hint}") from error


def require(arrays: Arrays, names: tuple[str, ...], what: str) -> list[NDArray[Any]]:
    """Return the arrays of these names.  Raises DataError when one is missing."""
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{what}: expected the arrays {', '.join(names)}; {missing[0]} is missing")
    return [arrays[name] for name in names]
