"""Make the reference models in tests/reference again: ``python -m tests.support.make_reference`` (needs TensorFlow)."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np

from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.keras.litert_graph import export_tflite
from stream_gru.model.keras.network import build_network, load_weights
from stream_gru.model.keras.spec import NetworkSpec
from tests.support.models import make_bundle, random_inputs
from tests.support.reference_models import FOLDER, INDEX

STEPS = 75  # no multiple of the scan's length
SCAN_STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "gru_reset_after": {"seed": 1},
    "gru_reset_before": {"reset_after": False, "seed": 2},
    "lstm": {"cell": "lstm", "seed": 3},
    "simple_rnn": {"cell": "simple_rnn", "seed": 4},
    "gru_stacked": {"units": (7, 5), "calendar": 2, "class_activation": "sigmoid", "seed": 5},
    "gru_quantiles": {"quantiles": (0.1, 0.5, 0.9), "labels": 0, "horizon": 3, "seed": 6},
    "gru_categories": {"categories": (9, 4), "embedding": 5, "labels": 2, "class_activation": "logistic", "seed": 8},
    "simple_rnn_one_hot": {
        "cell": "simple_rnn", "channels": 0, "categories": (5,), "horizon": 0, "labels": 5, "seed": 9,
    },
    "gru_classes": {"horizon": 0, "activation": "relu", "recurrent_activation": "hard_sigmoid", "seed": 7},
}  # fmt: skip


def keras_outputs(bundle: Bundle, x: F32) -> F32:
    """Keras' own outputs (T, K) for one whole sequence from the initial state."""
    w = bundle.weights
    spec = NetworkSpec.from_manifest(bundle.manifest)
    model = build_network(spec, w["scaling/mean"], w["scaling/scale"], stateless=True)
    load_weights(model, w)
    return np.asarray(model.predict_on_batch(x[None])[0], np.float32)


def write_case(name: str, options: dict[str, Any]) -> dict[str, str]:
    """Write one case; return the hashes of its files."""
    bundle = make_bundle(**options)
    x = random_inputs(bundle.manifest, STEPS, seed=options["seed"])
    manifest = np.frombuffer(msgspec.json.encode(bundle.manifest), np.uint8)
    arrays: dict[str, Any] = {**bundle.weights, "x": x, "y": keras_outputs(bundle, x), "manifest": manifest}
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
    (FOLDER / f"{name}.tflite").write_bytes(export_tflite(bundle.manifest, bundle.weights, SCAN_STEPS))
    files = [f"{name}.npz", f"{name}.tflite"]
    return {file: hashlib.sha256((FOLDER / file).read_bytes()).hexdigest() for file in files}


def main() -> None:
    """Write every case and the index."""
    FOLDER.mkdir(exist_ok=True)
    versions = {package: version(package) for package in ("tensorflow", "keras", "numpy")}
    cases = {name: write_case(name, options) for name, options in CASES.items()}
    INDEX.write_text(json.dumps({"versions": versions, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
