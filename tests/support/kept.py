"""Keepers over a toy model, and sources whose other side knows packets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from stream_gru.core.commit_records import ProcessedPackets
from stream_gru.core.protocols import Stateful
from stream_gru.core.types import Position
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer, Policy
from stream_gru.runtime.checkpoint.store import Store
from tests.support.feeds import ListSource
from tests.support.models import make_bundle
from tests.support.streams import CHANNELS, batch, calibrated, toy_pipeline


class PacketSource(ListSource):
    """A source that is `Redelivering`: it says ``said`` at each commit."""

    def __init__(self, items: Sequence[object] = ()) -> None:
        super().__init__(items)
        self.said = ProcessedPackets()
        self.packets: Mapping[int, bytes] | None = None

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Remember them."""
        self.on_call("resume")
        self.packets = packets

    def processed_packets(self, position: Position) -> ProcessedPackets:
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
    parts: Mapping[str, Stateful] | None = None,
    shared: Mapping[str, Stateful] | None = None,
    **policy: object,
) -> Checkpointer:
    """A keeper that has recovered what is in the folder."""
    found = Checkpointer(pipeline or model(), Store(folder), parts, shared, Policy(**policy))  # type: ignore[arg-type]
    found.recover({}, {})
    return found


def feed(keeper: Checkpointer, stream: str, *times_s: float) -> None:
    """Samples of one stream, as the daemon hands them on."""
    keeper._pipeline.process(keeper.load_streams(batch([stream] * len(times_s), times_s)))


def rows_in(pipeline: Pipeline) -> dict[str, bytes]:
    """Everything that the table has, by stream."""
    return {name: pipeline.table.row(name) for name in pipeline.streams}
