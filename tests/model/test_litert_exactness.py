"""The litert engine on a processor whose kernels give one row, or a scan, other bits than a batch (64-bit ARM)."""

from __future__ import annotations

import numpy as np
import pytest

from stream_gru.core.errors import BundleError
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.litert import Call, LitertEngine
from tests.support.models import random_inputs
from tests.support.reference_models import load_reference

ULP = np.float32(1 + 2**-23)


class OtherProcessor(LitertEngine):
    """Calls of these kinds return outputs and states that differ in their last bit."""

    differing: frozenset[tuple[str, int]]

    def _open(self, signature: str, rows: int | None) -> tuple[Call, int]:
        call, size = super()._open(signature, rows)
        if (signature, 0 if rows is None else rows) not in self.differing:
            return call, size

        def other(x: F32, h: F32) -> tuple[F32, F32]:
            y, state = call(x, h)
            return y * ULP, state * ULP

        return other, size


def engine_on(bundle: Bundle, *differing: tuple[str, int]) -> LitertEngine:
    """The engine on a processor on which (signature, rows) differ; a scan has 0 rows."""
    kind = type("Kind", (OtherProcessor,), {"differing": frozenset(differing)})
    engine: LitertEngine = kind(bundle)
    return engine


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A reference model with a flatbuffer, on a processor that needs no padding for it."""
    bundle = load_reference("gru_reset_after").bundle
    engine = LitertEngine(bundle)
    if engine.one_row != 1 or not engine.exact_scan:
        pytest.skip("this processor needs padding: the test cannot choose what differs")
    return bundle


@pytest.mark.parametrize(
    ("differing", "one_row", "exact_scan"),
    [
        ((), 1, True),
        ((("step", 1),), 2, True),
        ((("scan", 0),), 1, False),
        ((("step", 1), ("scan", 0)), 2, False),
        ((("step", 1), ("step", 2)), 8, True),
    ],
)
def test_rows_have_the_same_bits_in_every_batch(
    bundle: Bundle, differing: tuple[tuple[str, int], ...], one_row: int, exact_scan: bool
) -> None:
    """A single row is padded, and a scan made of steps, only where they differ; then all give the bits of a batch."""
    engine = engine_on(bundle, *differing)
    assert (engine.one_row, engine.exact_scan) == (one_row, exact_scan)
    x = random_inputs(bundle.manifest, 40)
    h = np.tile(engine.scan(x, engine.initial_state(1)[0])[1], (len(x), 1))
    together, states = engine.step(x, h)
    for size in (1, 2, 3, 7):
        parts = [engine.step(x[first : first + size], h[first : first + size]) for first in range(0, len(x), size)]
        assert np.concatenate([y for y, _ in parts]).tobytes() == together.tobytes()
        assert np.concatenate([state for _, state in parts]).tobytes() == states.tobytes()
    scanned, last = engine.scan(x, h[0])
    state = h[:1]
    for t in range(len(x)):
        y, state = engine.step(x[t : t + 1], state)
        assert y.tobytes() == scanned[t : t + 1].tobytes()
    assert state[0].tobytes() == last.tobytes()


def test_the_engine_reports_what_it_does(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    """One line at info where something is padded; none where nothing is."""
    with caplog.at_level("INFO", logger="stream_gru"):
        engine_on(bundle)
        assert not caplog.messages
        engine_on(bundle, ("step", 1), ("scan", 0))
    assert caplog.messages == [
        "engine litert: outputs do not depend on the batch: a single row is padded to 2, a scan is a loop of steps"
    ]


def test_a_processor_without_equal_rows_is_an_error() -> None:
    """Where no padding helps, the engine does not load."""

    class Random(LitertEngine):
        def _padded(self, size: int, x: F32, h: F32) -> tuple[F32, F32]:
            y, state = super()._padded(size, x, h)
            return y * np.float32(np.random.default_rng().random()), state

    with pytest.raises(BundleError, match="unequal outputs on this processor; use numpy"):
        Random(load_reference("gru_reset_after").bundle)
