"""Ingest: the stages between a source and the pipeline, in their order."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest

from stream_gru.config.run_schema import SourceInputConfig
from stream_gru.config.train_schema import ChannelConfig, InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import load_decoder
from stream_gru.core.errors import DataError
from stream_gru.core.protocols import Stateful
from stream_gru.core.types import NS_PER_S, DropReason, RawMessage, SampleBatch
from stream_gru.runtime.control.executor import PauseFilter
from stream_gru.runtime.ingest.channel_join import ChannelJoiner
from stream_gru.runtime.ingest.device_counters import DeviceClock, GapCounter
from stream_gru.runtime.ingest.ingest import Ingest, IngestResult, SharedStages, group_by_source
from tests.support.batches import START_NS, batch
from tests.support.fake_connectors import ReadyDecoder
from tests.support.stateful_parts import StateStore


def message_from(number: int, source: str = "a") -> RawMessage:
    """The message that `ReadyDecoder` turns into batch ``number``."""
    return RawMessage(b"%d" % number, source=source)


def one_record(time_s: int, values: list[float]) -> SampleBatch:
    """One record of stream p."""
    return batch(["p"], [time_s], [values])


def ingested(ingest: Ingest, *raw: RawMessage) -> IngestResult:
    """The samples of messages."""
    return ingest.apply(ingest.decode(raw))


def shared(joiner: ChannelJoiner | None = None, pause_filter: PauseFilter | None = None) -> SharedStages:
    """Stages that admit every stream."""
    return SharedStages(lambda batch: batch, joiner=joiner, pause_filter=pause_filter)


def test_without_further_stages_an_ingest_is_its_decoder() -> None:
    """Nothing is joined, missing or held."""
    ready = batch(["p"] * 3, [0, 1, 2])
    arrived = ingested(Ingest("a", ReadyDecoder([ready])), message_from(0))
    assert arrived.batch is ready
    assert (arrived.source, arrived.joined, arrived.missing) == ("a", 0, 0)


def test_channels_that_arrive_apart_are_joined_and_the_rest_comes_at_the_end() -> None:
    """Two records make a sample; records that wait for a channel are emitted at the end of the input."""
    records = [one_record(1, [1, nan, nan]), one_record(1, [nan, 2, 3]), one_record(2, [4, nan, nan])]
    stages = shared(joiner=ChannelJoiner(3, NS_PER_S, 5 * NS_PER_S, NS_PER_S))
    ingest = Ingest("a", ReadyDecoder(records), joins=True, shared=stages)
    arrived = [ingested(ingest, message_from(i)) for i in range(3)]
    assert [len(one.batch) for one in arrived] == [0, 1, 0]
    assert sum(one.joined for one in arrived) == 3
    last = ingest.flush()
    assert last is not None
    assert last.batch.values.tolist() == [[4, 2, 3]]


def test_samples_of_paused_streams_stop_at_the_gate() -> None:
    """They are received, and dropped for that reason."""
    gate = PauseFilter()
    gate.pause("p")
    ingest = Ingest("a", ReadyDecoder([batch(["p", "q"], [0, 0])]), shared=shared(pause_filter=gate))
    arrived = ingested(ingest, message_from(0))
    assert arrived.batch.rejected_counts == {DropReason.PAUSED: 1}
    assert np.array(arrived.batch.stream_names)[arrived.batch.stream_index].tolist() == ["q"]


def test_a_recording_of_several_sources_is_ingested_by_each() -> None:
    """Runs of messages go to the ingest of their source, in order; one that is not configured is an error."""
    ingests = {name: Ingest(name, ReadyDecoder([])) for name in "ab"}
    raw = [message_from(0, "a"), message_from(1, "b"), message_from(2, "b"), message_from(3, "a")]
    found = [(one.name, [each.payload for each in run]) for one, run in group_by_source(raw, ingests)]
    assert found == [("a", [b"0"]), ("b", [b"1", b"2"]), ("a", [b"3"])]
    with pytest.raises(DataError, match="messages of source attic"):
        list(group_by_source([message_from(0, "attic")], ingests))


def test_an_ingest_names_its_own_stateful_parts() -> None:
    """The joiner and the pause filter are shared and not among them."""
    bare = Ingest("a", ReadyDecoder([]), joins=True, shared=shared(ChannelJoiner(1, 1, 0, 0), PauseFilter()))
    assert bare.stateful_parts() == {}
    parts = stateful_ingest().stateful_parts()
    assert sorted(parts) == ["clock", "decoder", "gaps"]
    assert all(
        isinstance(part, Stateful) for part in [*parts.values(), ChannelJoiner(1, 1, 0, 0).state, PauseFilter().state]
    )


LINES = (b"T,n,up", b"1.5,1,1000", b"2.5,3,2000", b"up,n,T", b"4000,6,3.5", b"4.5,7,5000")


def stateful_ingest() -> Ingest:
    """Of lines of CSV whose time is that since the device's start, with a counter."""
    base = InputConfig(time="up", time_unit="ms", stream="")
    fields = Fields.for_source(
        base, [ChannelConfig(name="temp", column="T")], SourceInputConfig(clock="boot", device_seq="n"), ()
    )
    return Ingest("a", load_decoder("csv", fields), clock=DeviceClock(2**32 * 10**6), gaps=GapCounter())


@pytest.mark.parametrize("place", range(len(LINES) + 1))
def test_a_restart_changes_nothing(place: int) -> None:
    """With all its parts stored and restored between any two messages: header, clock and counter are known."""
    raw = [RawMessage(line, "p", arrival_ns=START_NS + i * NS_PER_S // 2, source="a") for i, line in enumerate(LINES)]
    whole = ingested(stateful_ingest(), *raw)
    one = stateful_ingest()
    found = [ingested(one, *raw[:place])]
    stores = {name: StateStore() for name in one.stateful_parts()}
    for name, part in one.stateful_parts().items():
        stores[name].commit(part)
    one = stateful_ingest()
    for name, part in one.stateful_parts().items():
        stores[name].fill(part)
    found.append(ingested(one, *raw[place:]))
    assert whole.missing == sum(part.missing for part in found) == 3
    assert [t for part in found for t in part.batch.time_ns.tolist()] == whole.batch.time_ns.tolist()
    assert [v for part in found for v in part.batch.values.tolist()] == whole.batch.values.tolist()
