"""What was read is cut into pieces of bounded size, and progress inside a message outlives the process."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import load_decoder
from stream_gru.core.types import DropReason, Position, RawMessage, Rejected
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime import pieces
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.ingest.ingest import Ingest
from stream_gru.runtime.pieces import GROUP_BYTES, MessageProgress, groups, slices
from stream_gru.runtime.wiring import Input
from tests.support.batches import batch as sample_batch
from tests.support.daemons import BEGIN_S
from tests.support.fake_connectors import ListSink, PacketSource
from tests.support.paths import BUNDLE
from tests.support.runtimes import daemon_of


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The shipped model."""
    return load_bundle(BUNDLE)


@given(st.lists(st.tuples(st.integers(0, 2 * GROUP_BYTES), st.booleans()), max_size=30))
def test_groups_are_bounded_and_keep_the_order(sizes: list[tuple[int, bool]]) -> None:
    """All messages come once and in order; a group of several is within the bound and has none that must be alone."""
    messages = [RawMessage(bytes(size), key=str(number)) for number, (size, _) in enumerate(sizes)]
    single = {str(number) for number, (_, alone) in enumerate(sizes) if alone}
    found = list(groups(messages, lambda message: message.key in single))
    assert [message for group in found for message in group] == messages
    for group in found:
        assert group
        if len(group) > 1:
            assert sum(len(message.payload) for message in group) <= GROUP_BYTES
            assert not single & {message.key for message in group}


def record(second: int) -> dict[str, object]:
    """One record of the shipped model."""
    return {"ts": BEGIN_S + second, "flow": 100.0, "pressure": 300.0, "current": 5.0, "vibration": 1.5}


def large_message(number: int, seconds: range) -> RawMessage:
    """The message with this number: a record for each of these seconds."""
    payload = json.dumps([record(second) for second in seconds]).encode()
    return RawMessage(payload, "pump-1", arrival_ns=1, position=Position("plant", number), source="plant")


@pytest.fixture
def _each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each message is a group of its own, as one of more than `GROUP_BYTES` is."""
    monkeypatch.setattr(pieces, "GROUP_BYTES", 1)


class Killed(BaseException):
    """The process ends here."""


class System:
    """A daemon that reads ``messages`` of many records, four rows at a time; it is killed at the n-th write."""

    def __init__(self, folder: Path, bundle: Bundle, messages: list[RawMessage], *, killed_at: int = 0) -> None:
        self._left = killed_at
        self.source = PacketSource([messages])
        self.sink = ListSink(on_write=self._count)
        named = msgspec.structs.replace(bundle.manifest.input, time="ts", time_unit="s", stream="", label="")
        decoder = load_decoder("json_array", Fields.of(named, bundle.manifest.channels))
        progress = MessageProgress(100)
        self.input = Input("plant", self.source, {"plant": Ingest("plant", decoder)}, progress=progress)
        self.pipeline = Pipeline(bundle, "numpy")
        keeper = Checkpointer(self.pipeline, Store(folder), shared={"progress:plant": progress.state})
        self.daemon = daemon_of(
            [self.input], self.pipeline, {"rows": self.sink}, checkpointer=keeper, batch_rows=4, commit_every=1
        )

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise Killed

    def run(self) -> list[int]:
        """Run to the end or the kill; return the seconds of the rows that were written."""
        with contextlib.suppress(Killed):
            self.daemon.run()
        return [int(time) // 10**9 - BEGIN_S for batch in self.sink.written for time in batch.time_ns]


MESSAGES = [large_message(1, range(10)), large_message(2, range(10, 13)), large_message(3, range(13, 30))]


def test_a_message_is_processed_in_slices(tmp_path: Path, bundle: Bundle) -> None:
    """No batch has more than ``batch_rows`` rows; a position is acknowledged once its whole message is durable."""
    system = System(tmp_path, bundle, [MESSAGES[0]])
    assert system.run() == list(range(10))
    assert [len(batch) for batch in system.sink.written] == [4, 4, 2]
    assert [position.offset for position in system.source.committed] == [1]
    flushes = [n for n, call in enumerate(system.sink.calls) if call == "flush"]
    writes = [n for n, call in enumerate(system.sink.calls) if call == "write"]
    assert all(any(first < flush < second for flush in flushes) for first, second in itertools.pairwise(writes))


@pytest.mark.usefixtures("_each_alone")
@pytest.mark.parametrize("killed_at", range(1, 8))
def test_rows_that_are_durable_are_not_processed_again(tmp_path: Path, bundle: Bundle, killed_at: int) -> None:
    """After a kill inside a message its durable rows are skipped; state and other rows are as without a kill."""
    whole = System(tmp_path / "whole", bundle, MESSAGES)
    every = whole.run()
    first = System(tmp_path / "killed", bundle, MESSAGES, killed_at=killed_at)
    written = first.run()
    acknowledged = len(first.source.committed)
    second = System(tmp_path / "killed", bundle, MESSAGES[acknowledged:])
    rest = second.run()
    durable = written[: -len(first.sink.written[-1])]  # the batch of the kill is not committed
    assert [*durable, *rest] == every
    assert second.pipeline.table.row("pump-1") == whole.pipeline.table.row("pump-1")


@pytest.mark.usefixtures("_each_alone")
def test_progress_belongs_to_one_message(tmp_path: Path, bundle: Bundle) -> None:
    """Another message in its place, after the broker lost the session, is processed from its beginning."""
    System(tmp_path, bundle, MESSAGES, killed_at=3).run()
    assert System(tmp_path, bundle, [large_message(1, range(40, 50))]).run() == list(range(40, 50))


def test_progress_is_searched_for_a_while() -> None:
    """It is discarded after ``window`` other messages: an equal payload much later is another message."""
    progress = MessageProgress(2)
    progress.note(MESSAGES[0], 4)
    assert progress.rows_done([MESSAGES[1]]) == 0
    progress.finish(MESSAGES[1])
    assert progress.is_next(MESSAGES[0])
    assert progress.rows_done([MESSAGES[2]]) == 0
    assert not progress.is_next(MESSAGES[0])
    assert progress.rows_done([MESSAGES[0]]) == 0


@given(st.integers(1, 40), st.integers(1, 12))
def test_slices_hold_all_rows_and_all_rejects_once(rows: int, most: int) -> None:
    """Rows stay in order, no slice is larger than the bound, and the first one has what was rejected."""
    rejected = (Rejected(DropReason.PARSE, 2, MESSAGES[0]),)
    batch = sample_batch([f"s{n % 3}" for n in range(rows)], list(range(rows)), rejected=rejected)
    found = list(slices(batch, most))
    assert np.concatenate([part.time_ns for part in found]).tolist() == batch.time_ns.tolist()
    assert max(len(part) for part in found) <= most
    assert [part.rejected for part in found] == [batch.rejected, *[()] * (len(found) - 1)]
