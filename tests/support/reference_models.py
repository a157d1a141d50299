"""The stored reference models: weights, samples, outputs of Keras and the flatbuffer, readable without TensorFlow."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import msgspec
import numpy as np

from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import Manifest
from tests.support.paths import ROOT

FOLDER = ROOT / "tests" / "reference"
INDEX = FOLDER / "index.json"


@dataclass(frozen=True)
class Reference:
    """A bundle, samples x (T, I) and Keras' outputs from the initial state, y (T, K)."""

    bundle: Bundle
    x: F32
    y: F32


def reference_names() -> list[str]:
    """Names of the stored cases, sorted."""
    return sorted(json.loads(INDEX.read_text())["cases"])


def load_reference(name: str) -> Reference:
    """Read one case after comparing the hashes of its files."""
    for file, sha256 in json.loads(INDEX.read_text())["cases"][name].items():
        found = hashlib.sha256((FOLDER / file).read_bytes()).hexdigest()
        assert found == sha256, f"{file}: expected {sha256}, found {found}; run tests/support/make_reference.py"
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    manifest = msgspec.json.decode(arrays.pop("manifest").tobytes(), type=Manifest)
    x, y = arrays.pop("x"), arrays.pop("y")
    tflite = (FOLDER / f"{name}.tflite").read_bytes()
    return Reference(Bundle(FOLDER / name, manifest, arrays, tflite), x, y)
