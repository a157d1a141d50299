"""The intake: what stands between a source and the pipeline, in which order."""

from __future__ import annotations

from math import nan

import numpy as np
import pytest

from stream_gru.config.run_schema import SourceInputConfig
from stream_gru.config.train_schema import ChannelConfig, InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.registry import load_decoder
from stream_gru.core.errors import DataError
from stream_gru.core.protocols import Stateful
from stream_gru.core.types import NS_PER_S, DropReason, RawMessage, SampleBatch
from stream_gru.runtime.control.commands import PauseFilter
from stream_gru.runtime.ingest.channel_join import Assembler
from stream_gru.runtime.ingest.device_clock import DeviceClock
from stream_gru.runtime.ingest.ingest import Arrived, Intake, by_source
from stream_gru.runtime.ingest.sequence_gaps import SequenceWatch
from tests.support.batches import START_NS, batch
from tests.support.fake_connectors import ReadyDecoder
from tests.support.stateful_parts import Shelf


def message(number: int, source: str = "a") -> RawMessage:
    """The message that `ReadyDecoder` turns into batch ``number``."""
    return RawMessage(b"%d" % number, source=source)


def part(time_s: int, values: list[float]) -> SampleBatch:
    """One record of stream p."""
    return batch(["p"], [time_s], [values])


def taken(intake: Intake, *raw: RawMessage) -> Arrived:
    """What becomes of messages."""
    return intake.take(intake.decode(raw))


def test_without_more_parts_an_intake_is_its_decoder() -> None:
    """Nothing is joined, missing or held."""
    ready = batch(["p"] * 3, [0, 1, 2])
    arrived = taken(Intake("a", ReadyDecoder([ready])), message(0))
    assert arrived.batch is ready
    assert (arrived.source, arrived.joined, arrived.missing) == ("a", 0, 0)


def test_channels_that_arrive_apart_are_joined_and_the_rest_comes_at_the_end() -> None:
    """Two records make a sample; what waits for a channel is given out when nothing more will come."""
    records = [part(1, [1, nan, nan]), part(1, [nan, 2, 3]), part(2, [4, nan, nan])]
    assembler = Assembler(3, NS_PER_S, 5 * NS_PER_S, NS_PER_S)
    intake = Intake("a", ReadyDecoder(records), assembler=assembler)
    arrived = [taken(intake, message(i)) for i in range(3)]
    assert [len(one.batch) for one in arrived] == [0, 1, 0]
    assert sum(one.joined for one in arrived) == 3
    last = intake.finish()
    assert last is not None
    assert last.batch.values.tolist() == [[4, 2, 3]]


def test_samples_of_paused_streams_stop_at_the_gate() -> None:
    """They are received, and dropped for that reason."""
    gate = PauseFilter()
    gate.pause("p")
    arrived = taken(Intake("a", ReadyDecoder([batch(["p", "q"], [0, 0])]), gate=gate), message(0))
    assert arrived.batch.rejected_counts == {DropReason.PAUSED: 1}
    assert np.array(arrived.batch.stream_names)[arrived.batch.stream_index].tolist() == ["q"]


def test_a_recording_of_several_sources_is_taken_in_by_each() -> None:
    """Runs of messages go to the intake of their source, in order; one that is not configured is an error."""
    intakes = {name: Intake(name, ReadyDecoder([])) for name in "ab"}
    raw = [message(0, "a"), message(1, "b"), message(2, "b"), message(3, "a")]
    found = [(intake.name, [one.payload for one in run]) for intake, run in by_source(raw, intakes)]
    assert found == [("a", [b"0"]), ("b", [b"1", b"2"]), ("a", [b"3"])]
    with pytest.raises(DataError, match="attic: the recording is of this source"):
        list(by_source([message(0, "attic")], intakes))


def test_an_intake_tells_the_parts_of_its_own_that_remember() -> None:
    """By a name each; the assembler and the gate are shared and not among them."""
    bare = Intake("a", ReadyDecoder([]), assembler=Assembler(1, 1, 0, 0), gate=PauseFilter())
    assert bare.remembering() == {}
    parts = remembering_intake().remembering()
    assert sorted(parts) == ["clock", "decoder", "sequence"]
    assert all(isinstance(part, Stateful) for part in [*parts.values(), Assembler(1, 1, 0, 0), PauseFilter()])


LINES = (b"T,n,up", b"1.5,1,1000", b"2.5,3,2000", b"up,n,T", b"4000,6,3.5", b"4.5,7,5000")


def remembering_intake() -> Intake:
    """Of lines of CSV whose time is that since the device's start, with a counter."""
    base = InputConfig(time="up", time_unit="ms", stream="")
    fields = Fields.for_source(
        base, [ChannelConfig(name="temp", column="T")], SourceInputConfig(clock="boot", device_seq="n"), ()
    )
    return Intake("a", load_decoder("csv", fields), clock=DeviceClock(2**32 * 10**6), sequence=SequenceWatch())


@pytest.mark.parametrize("place", range(len(LINES) + 1))
def test_an_intake_goes_on_after_a_restart_as_if_there_had_been_none(place: int) -> None:
    """With all its parts stored and restored between any two messages: header, clock and counter are known."""
    raw = [RawMessage(line, "p", arrival_ns=START_NS + i * NS_PER_S // 2, source="a") for i, line in enumerate(LINES)]
    whole = taken(remembering_intake(), *raw)
    one = remembering_intake()
    found = [taken(one, *raw[:place])]
    shelves = {name: Shelf() for name in one.remembering()}
    for name, part in one.remembering().items():
        shelves[name].commit(part)
    one = remembering_intake()
    for name, part in one.remembering().items():
        shelves[name].fill(part)
    found.append(taken(one, *raw[place:]))
    assert whole.missing == sum(part.missing for part in found) == 3
    assert [t for part in found for t in part.batch.time_ns.tolist()] == whole.batch.time_ns.tolist()
    assert [v for part in found for v in part.batch.values.tolist()] == whole.batch.values.tolist()
