"""Compiles exported C and calls it through ctypes."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.export.c_source import c_files

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-ffreestanding", "-nostdlib")
FLOATS = ctypes.POINTER(ctypes.c_float)


def write_c(bundle: Bundle, folder: Path) -> list[Path]:
    """Write the C files of a bundle; return those that are compiled."""
    for name, data in c_files(bundle.manifest, bundle.weights, bundle.tflite).items():
        (folder / name).write_bytes(data)
    return sorted(folder.glob("*.c"))


def shared_object(sources: Sequence[Path], options: Sequence[str] = STRICT) -> ctypes.CDLL:
    """Compile and load sources; a warning is an error."""
    library = sources[0].parent / "model.so"
    run_checked("gcc", *options, "-O2", "-shared", "-fPIC", "-o", str(library), *map(str, sources))
    return ctypes.CDLL(str(library))


def run_checked(*command: str) -> str:
    """Run a command; return its standard output, or fail with its error output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


class CModel:
    """The compiled model of a bundle, called as an engine is."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle, self.library = bundle, shared_object(write_c(bundle, folder))

    def reset(self) -> F32:
        """A fresh state, (S,)."""
        h = np.full(self.bundle.manifest.state_size, 7, np.float32)
        self.library.stream_gru_reset(_pointer(h))
        return h

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """One sample of one stream: ``(I,), (S,) -> (K,), (S,)``."""
        x, state = np.ascontiguousarray(x), h.copy()
        y = np.zeros(self.bundle.manifest.output_size, np.float32)
        self.library.stream_gru_step(_pointer(x), _pointer(state), _pointer(y))
        return y, state

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Samples of one stream: ``(T, I), (S,) -> (T, K), (S,)``."""
        rows = []
        for sample in x:
            y, h = self.step(sample, h)
            rows.append(y)
        return np.array(rows), h

    def strings(self, name: str, count: int) -> list[str]:
        """An array of strings of the file."""
        array = (ctypes.c_char_p * count).in_dll(self.library, name)
        return [(text or b"").decode() for text in array]


def _pointer(array: F32) -> object:
    return array.ctypes.data_as(FLOATS)
