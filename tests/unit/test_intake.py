"""The intake: what stands between a source and the pipeline, in which order."""

from __future__ import annotations

import numpy as np
import pytest

from stream_gru.control import Gate
from stream_gru.errors import DataError
from stream_gru.intake import Intake, by_source
from stream_gru.intake.assembly import Assembler
from stream_gru.types import NS_PER_S, DropReason, RawMessage, SampleBatch
from tests.support.feeds import ReadyDecoder
from tests.support.streams import batch

NAN = float("nan")


def message(number: int, source: str = "a") -> RawMessage:
    """The message that `ReadyDecoder` turns into batch ``number``."""
    return RawMessage(b"%d" % number, source=source)


def part(time_s: int, values: list[float]) -> SampleBatch:
    """One record of stream p."""
    return batch(["p"], [time_s], [values])


def test_without_more_parts_an_intake_is_its_decoder() -> None:
    """Nothing is joined, missing or held."""
    ready = batch(["p"] * 3, [0, 1, 2])
    arrived = Intake("a", ReadyDecoder([ready])).take([message(0)])
    assert arrived.batch is ready
    assert (arrived.source, arrived.joined, arrived.missing) == ("a", 0, 0)


def test_channels_that_arrive_apart_are_joined_and_the_rest_comes_at_the_end() -> None:
    """Two records make a sample; what waits for a channel is given out when nothing more will come."""
    records = [part(1, [1, NAN, NAN]), part(1, [NAN, 2, 3]), part(2, [4, NAN, NAN])]
    assembler = Assembler(3, NS_PER_S, 5 * NS_PER_S, NS_PER_S)
    intake = Intake("a", ReadyDecoder(records), assembler=assembler)
    arrived = [intake.take([message(i)]) for i in range(3)]
    assert [len(one.batch) for one in arrived] == [0, 1, 0]
    assert sum(one.joined for one in arrived) == 3
    last = intake.finish()
    assert last is not None
    assert last.batch.values.tolist() == [[4, 2, 3]]


def test_samples_of_paused_streams_stop_at_the_gate() -> None:
    """They are received, and dropped for that reason."""
    gate = Gate()
    gate.pause("p")
    arrived = Intake("a", ReadyDecoder([batch(["p", "q"], [0, 0])]), gate=gate).take([message(0)])
    assert arrived.batch.rejected == {DropReason.PAUSED: 1}
    assert np.array(arrived.batch.streams)[arrived.batch.stream].tolist() == ["q"]


def test_a_recording_of_several_sources_is_taken_in_by_each() -> None:
    """Runs of messages go to the intake of their source, in order; one that is not configured is an error."""
    intakes = {name: Intake(name, ReadyDecoder([])) for name in "ab"}
    raw = [message(0, "a"), message(1, "b"), message(2, "b"), message(3, "a")]
    found = [(intake.name, [one.payload for one in run]) for intake, run in by_source(raw, intakes)]
    assert found == [("a", [b"0"]), ("b", [b"1", b"2"]), ("a", [b"3"])]
    with pytest.raises(DataError, match="attic: the recording is of this source"):
        list(by_source([message(0, "attic")], intakes))
