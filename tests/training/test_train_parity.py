"""What training gives to the parity gate: its longest run, and the beginnings of others, answered by plain Keras."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_gru.core.errors import ParityError
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import EngineParity
from tests.support.models import make_bundle, random_inputs

pytest.importorskip("tensorflow")

from stream_gru.model.keras.network import build_network, load_weights
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training import train as module
from stream_gru.training.fit import Fitted
from stream_gru.training.segments import Run

pytestmark = pytest.mark.train

WRONG = 4


def run_of(bundle: Bundle, rows: int, seed: int) -> Run:
    """A run of random samples."""
    x = random_inputs(bundle.manifest, rows, seed)
    return Run("s", np.zeros(rows, np.int64), x, np.ones(x.shape, np.bool_), np.zeros(rows, np.int32))


def gate(bundle: Bundle, runs: list[Run]) -> list[EngineParity]:
    """Hold the engines against Keras with the bundle's weights, as training does."""
    assert bundle.tflite is not None
    manifest, weights = bundle.manifest, bundle.weights
    spec = NetworkSpec.from_manifest(manifest)
    model = build_network(spec, weights["scaling/mean"], weights["scaling/scale"], stateless=True)
    load_weights(model, weights)
    return module._parity(manifest, Fitted(model, weights, [], 1, "epochs"), bundle.tflite, runs)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A model of one quantity and one learnt category, with its flatbuffer."""
    return make_bundle(channels=1, targets=1, categories=(6,), embedding=3, with_tflite=True)


def test_further_runs_are_compared_within_the_budget(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides the longest run as many others as the steps allow, an eighth of them at least."""
    monkeypatch.setattr(module, "_PARITY_STEPS", 320)
    runs = [run_of(bundle, 28, seed) for seed in range(20)]
    assert [row.samples for row in gate(bundle, [*runs, run_of(bundle, 40, 99)])][:2] == [320 + 256, 320]
    long = gate(bundle, [run_of(bundle, 400, 99), *runs])
    assert [row.samples for row in long] == [320 + 28 + 256, 320 + 28, 320, 320]
    assert [row.samples for row in gate(bundle, runs[:1])] == [28 + 256, 28, 28, 28]


def test_a_flatbuffer_that_is_wrong_in_other_runs_only_is_found(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A category that the longest run does not hold stops the export all the same."""
    table = bundle.weights["embedding_1/embeddings"].copy()
    table[WRONG] += np.float32(0.05)
    wrong = make_bundle(channels=1, targets=1, categories=(6,), embedding=3)
    weights = {**wrong.weights, "embedding_1/embeddings": table}
    longest = run_of(bundle, 40, 0)
    longest.x[longest.x[:, 1] == WRONG, 1] = 0
    others = [run_of(bundle, 28, seed) for seed in range(3)]
    # Random samples hold every category, and numpy, held against the flatbuffer, would find it there.
    monkeypatch.setattr("stream_gru.model.parity.RANDOM_SAMPLES", 1)
    keras_is_right = replace(wrong, weights=weights, tflite=bundle.tflite)
    gate(keras_is_right, [longest])
    with pytest.raises(ParityError, match=r"litert \(run \d, batch\)"):
        gate(keras_is_right, [longest, *others])
