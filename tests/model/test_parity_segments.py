"""The parity check on recordings of many short sequences: the starts of further segments are compared too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from stream_gru.core.errors import ParityError
from stream_gru.core.types import F32, I64
from stream_gru.model import parity
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.numpy_engine import NumpyEngine
from stream_gru.model.manifest import EngineParity
from stream_gru.model.parity import SegmentStarts, check_parity, pad_segment_starts
from tests.support.models import make_bundle, random_inputs

LENGTHS = (5, 28, 1, 12)
WRONG = 4
"""The category whose vector is wrong in both engines."""


class Named(NumpyEngine):
    """The numpy engine under the requested name."""

    def __init__(self, name: str, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.name = name


@pytest.fixture(autouse=True)
def _engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines are the numpy engine, so that they have the same error."""
    monkeypatch.setattr(parity, "load_engine", Named)


@pytest.fixture
def bundle() -> Bundle:
    """A model of one quantity and one learnt category."""
    return make_bundle(channels=1, targets=1, categories=(6,), embedding=3)


def one_run(bundle: Bundle) -> F32:
    """The longest segment, (40, I), which does not contain the category `WRONG`."""
    x = random_inputs(bundle.manifest, 40)
    x[x[:, 1] == WRONG, 1] = 0
    return x


def answers(bundle: Bundle, x: F32) -> F32:
    """The correct outputs from the initial state: (T, I) -> (T, K)."""
    engine = NumpyEngine(bundle)
    return engine.scan(x, engine.initial_state(1)[0])[0]


def beginnings(bundle: Bundle, lengths: Sequence[int] = LENGTHS) -> SegmentStarts:
    """Segment starts of these lengths with the correct outputs."""
    x, length = pad_segment_starts([random_inputs(bundle.manifest, n, seed) for seed, n in enumerate(lengths)], 1000)
    return SegmentStarts(x, length, np.stack([answers(bundle, row) for row in x]))


def damaged_bundle(bundle: Bundle) -> Bundle:
    """The same model with a wrong vector for one category."""
    table = bundle.weights["embedding_1/embeddings"].copy()
    table[WRONG] += np.float32(0.01)
    return replace(bundle, weights={**bundle.weights, "embedding_1/embeddings": table})


def check_gate(bundle: Bundle, engines: Bundle, runs: SegmentStarts | None) -> list[EngineParity]:
    """Compare engines on the weights of ``engines`` with the outputs of ``bundle``."""
    x = one_run(bundle)
    states = np.zeros((1, bundle.manifest.state_size), np.float32)
    y = answers(bundle, x)
    return check_parity(engines.manifest, engines.weights, b"", y, x, states=states, starts=runs)


def test_equal_engines_pass_and_every_sample_is_counted(bundle: Bundle) -> None:
    """The steps of the segment, of the segment starts and, for litert, the random ones."""
    rows = check_gate(bundle, bundle, beginnings(bundle))
    assert [row.engine for row in rows] == ["litert", "numpy", "litert carried", "numpy carried"]
    assert [row.samples for row in rows] == [40 + sum(LENGTHS) + 256, 40 + sum(LENGTHS), 40, 40]
    assert all(row.max_difference < row.tolerance for row in rows)


def test_an_engine_that_is_wrong_on_one_category_is_found(bundle: Bundle) -> None:
    """The longest segment lacks the category and does not find the error; the short ones do."""
    wrong = damaged_bundle(bundle)
    check_gate(bundle, wrong, None)
    with pytest.raises(ParityError, match=r"litert \(segment \d, batch\): step \d+, .*: expected .*, got "):
        check_gate(bundle, wrong, beginnings(bundle))


@pytest.mark.parametrize("name", ["litert", "numpy"])
@pytest.mark.parametrize("way", ["batch", "scan"])
def test_each_engine_is_compared_on_the_starts_as_scan_and_batch(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:  # fmt: skip
    """An engine that is wrong only in scans of five steps, or in batches of three rows, is found."""

    class Broken(Named):
        def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
            y, state = super().scan(x, h)
            return y + np.float32(way == "scan" and self.name == name and len(x) == 5), state

        def step(self, x: F32, h: F32) -> tuple[F32, F32]:
            y, state = super().step(x, h)
            return y + np.float32(way == "batch" and self.name == name and len(x) == 3), state

    monkeypatch.setattr(parity, "load_engine", Broken)
    check_gate(bundle, bundle, None)
    with pytest.raises(ParityError, match=rf"^{name} \(segment \d, {way}\)"):
        check_gate(bundle, bundle, beginnings(bundle))


def test_padding_is_ignored(bundle: Bundle) -> None:
    """Outputs of Keras after the end of a segment are ignored; within it every number must be finite."""
    runs = beginnings(bundle)
    short = int(runs.length.argmin())
    output = runs.output.copy()
    output[short, runs.length[short] :] = np.nan
    check_gate(bundle, bundle, replace(runs, output=output))
    output[short, 0, 0] = np.nan
    with pytest.raises(ParityError, match=rf"keras: segment {short}, step 0: expected finite outputs"):
        check_gate(bundle, bundle, replace(runs, output=output))


def drawn(lengths: Sequence[int], steps: int) -> tuple[F32, I64]:
    """Starts of segments that count from 1, of one input."""
    return pad_segment_starts([np.arange(1, n + 1, dtype=np.float32)[:, None] for n in lengths], steps)


def test_segment_starts_are_drawn_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit into the steps, padding included, each at most a block long; deterministic, one at least."""
    x, length = drawn([28] * 100, 1000)
    assert x.shape == (1000 // 28, 28, 1)
    x, length = drawn([3, 5000, 7], 1000)
    assert sorted(length.tolist()) == [3, 7, 256]
    assert [row[:, 0].tolist() for row in x] == [[*range(1, n + 1), *[0] * (256 - n)] for n in length.tolist()]
    assert drawn([5000], 10)[0].shape == (1, 256, 1)
    first, again = drawn(range(1, 60), 200), drawn(range(1, 60), 200)
    assert first[1].tolist() == again[1].tolist()
    monkeypatch.setattr(parity, "MAX_SEGMENT_STARTS", 4)
    assert len(drawn([1] * 10, 1000)[1]) == 4
