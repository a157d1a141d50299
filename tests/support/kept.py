"""Keepers over a toy model, and sources whose other side knows packets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stream_gru.core.commit_records import Receipts
from stream_gru.core.protocols import Remembering
from stream_gru.core.types import Position
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Keeper, Policy
from stream_gru.runtime.checkpoint.store import Store
from tests.support.feeds import ListSource
from tests.support.models import make_bundle
from tests.support.streams import CHANNELS, batch, calibrated, toy_pipeline


class PacketSource(ListSource):
    """A source that is `Receipted`: it says ``said`` at each commit."""

    def __init__(self, items: Sequence[object] = ()) -> None:
        super().__init__(items)
        self.said = Receipts()
        self.packets: Mapping[int, bytes] | None = None

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Remember them."""
        self.on_call("resume")
        self.packets = packets

    def receipts(self, position: Position) -> Receipts:
        """As told."""
        self.on_call("receipts")
        return self.said


def model(seed: int = 0, channels: int = CHANNELS, units: int = 8) -> Pipeline:
    """A pipeline over the model test-<seed>."""
    bundle = calibrated(make_bundle(channels=channels, labels=2, warm_up=2, seed=seed, units=(units,), targets=1))
    return toy_pipeline(bundle)


def keeper_of(
    folder: Path,
    pipeline: Pipeline | None = None,
    parts: Mapping[str, Remembering] | None = None,
    shared: Mapping[str, Remembering] | None = None,
    **policy: object,
) -> Keeper:
    """A keeper that has recovered what is in the folder."""
    found = Keeper(pipeline or model(), Store(folder), parts, shared, Policy(**policy))  # type: ignore[arg-type]
    found.recover({}, {})
    return found


def feed(keeper: Keeper, stream: str, *times_s: float) -> None:
    """Samples of one stream, as the daemon hands them on."""
    keeper._pipeline.process(keeper.admit(batch([stream] * len(times_s), times_s)))


def rows_in(pipeline: Pipeline) -> dict[str, bytes]:
    """Everything that the table has, by stream."""
    return {name: pipeline.table.row(name) for name in pipeline.streams}
