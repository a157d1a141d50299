"""Training passes its longest segment and the starts of others to the parity gate, with the outputs of Keras."""

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
from stream_gru.training.fit import FitResult
from stream_gru.training.splits import Segment

pytestmark = pytest.mark.train

WRONG = 4


def segment_of_length(bundle: Bundle, rows: int, seed: int) -> Segment:
    """A segment of random samples."""
    x = random_inputs(bundle.manifest, rows, seed)
    return Segment("s", np.zeros(rows, np.int64), x, np.ones(x.shape, np.bool_), np.zeros(rows, np.int32))


def train_gate(bundle: Bundle, segments: list[Segment]) -> list[EngineParity]:
    """Compare the engines with Keras on the bundle's weights, as training does."""
    assert bundle.tflite is not None
    manifest, weights = bundle.manifest, bundle.weights
    spec = NetworkSpec.from_manifest(manifest)
    model = build_network(spec, weights["scaling/mean"], weights["scaling/scale"], stateless=True)
    load_weights(model, weights)
    return module._parity(manifest, FitResult(model, weights, [], 1, "epochs"), bundle.tflite, segments)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A model of one quantity and one embedded category, with its flatbuffer."""
    return make_bundle(channels=1, targets=1, categories=(6,), embedding=3, with_tflite=True)


def test_other_segments_are_compared_within_the_budget(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Besides the longest segment, as many others as the steps allow, and at least an eighth of the steps."""
    monkeypatch.setattr(module, "_PARITY_STEPS", 320)
    segments = [segment_of_length(bundle, 28, seed) for seed in range(20)]
    assert [row.samples for row in train_gate(bundle, [*segments, segment_of_length(bundle, 40, 99)])][:2] == [
        320 + 256,
        320,
    ]
    long = train_gate(bundle, [segment_of_length(bundle, 400, 99), *segments])
    assert [row.samples for row in long] == [320 + 28 + 256, 320 + 28, 320, 320]
    assert [row.samples for row in train_gate(bundle, segments[:1])] == [28 + 256, 28, 28, 28]


def test_a_flatbuffer_wrong_only_in_other_segments_is_found(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A wrong category that the longest segment does not contain still stops the export."""
    table = bundle.weights["embedding_1/embeddings"].copy()
    table[WRONG] += np.float32(0.05)
    wrong = make_bundle(channels=1, targets=1, categories=(6,), embedding=3)
    weights = {**wrong.weights, "embedding_1/embeddings": table}
    longest = segment_of_length(bundle, 40, 0)
    longest.x[longest.x[:, 1] == WRONG, 1] = 0
    others = [segment_of_length(bundle, 28, seed) for seed in range(3)]
    # Random samples contain every category, so the comparison with numpy would find the error there.
    monkeypatch.setattr("stream_gru.model.bundle.RANDOM_SAMPLES", 1)
    keras_is_right = replace(wrong, weights=weights, tflite=bundle.tflite)
    train_gate(keras_is_right, [longest])
    with pytest.raises(ParityError, match=r"litert \(segment \d, batch\)"):
        train_gate(keras_is_right, [longest, *others])
