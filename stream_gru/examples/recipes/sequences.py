"""Sequences written as the recording of a few devices, in a Parquet file.

Sequence n goes to device n mod ``devices``; each device sends one sample per period, one sequence after another, with
the sequence number as the episode, so that its state is reset at each start.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.errors import DataError
from stream_gru.core.types import F32, I32, I64


@dataclass(frozen=True)
class Sequences:
    """N sequences, concatenated.

    ``values`` (R, C) float32; ``length`` (N,) samples of each; ``label`` (R,) index of the class of each sample, -1 for
    none, or None.
    """

    values: F32
    length: I64
    label: I32 | None = None

    @staticmethod
    def equal(values: F32, steps: int, label: I32 | None = None) -> Sequences:
        """Sequences of ``steps`` samples each."""
        return Sequences(values, np.full(len(values) // steps, steps, np.int64), label)


def label_at_end(classes: I32, length: I64) -> I32:
    """The class (N,) of each sequence at its last sample: (R,), -1 before."""
    label = np.full(int(length.sum()), -1, np.int32)
    label[np.cumsum(length) - 1] = classes
    return label


def write_recording(
    path: Path,
    part: str,
    sequences: Sequences,
    channels: Sequence[str],
    labels: Sequence[str],
    period_s: float,
    devices: int,
) -> None:
    """Write columns time (s), stream, sequence, the channels and label, in order of time.

    Streams are named ``<part>-<number>``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    order, device, step, number = _interleave(sequences.length, devices)
    names = [f"{part}-{index:03}" for index in range(devices)]
    columns = {
        "time": pa.array(np.round(step * period_s, 9)),
        "stream": pa.DictionaryArray.from_arrays(pa.array(device.astype(np.int32)), names),
        "sequence": pa.array(number.astype(np.int32)),
        **{name: pa.array(sequences.values[order, index]) for index, name in enumerate(channels)},
    }
    if sequences.label is not None:
        code = sequences.label[order]
        columns["label"] = pa.DictionaryArray.from_arrays(pa.array(code, mask=code < 0), list(labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")


def _interleave(length: I64, devices: int) -> tuple[I64, I64, I64, I64]:
    """For each row of the file, by time: its row in the sequences, device, step of the device, sequence number."""
    count = len(length)
    number = np.repeat(np.arange(count), length)
    starts = np.cumsum(length) - length
    before = np.zeros(count, np.int64)  # steps of the device before this sequence
    for device in range(min(devices, count)):
        mine = length[device::devices]
        before[device::devices] = np.cumsum(mine) - mine
    step = np.arange(int(length.sum())) - np.repeat(starts - before, length)
    order = np.lexsort((number % devices, step))
    return order, (number % devices)[order], step[order], number[order]


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
