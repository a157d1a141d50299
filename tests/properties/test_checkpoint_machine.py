"""A kill at any instant: states, outputs and acknowledgements are those of a run that was never killed.

A daemon with its store, a broker that redelivers unacknowledged messages, a file that is truncated and an outbox;
beside it a pipeline without a store that gets the committed messages and is never killed.  STREAM_GRU_EXAMPLES sets how
many cases are tried, of up to 50 steps each.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream_gru.core.errors import StateError
from stream_gru.core.protocols import Sink
from stream_gru.core.types import Position, RawMessage, ResetReason, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.state_table import split_row
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.eviction import StatePolicy
from stream_gru.runtime.checkpoint.state_export import StreamExport, export_from_json, export_to_json
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.control.executor import PauseFilter
from stream_gru.runtime.ingest.device_counters import GapCounter
from stream_gru.runtime.ingest.ingest import Ingest, SharedStages
from stream_gru.runtime.wiring import Input
from tests.support.crash_models import (
    SOURCE,
    UNBOUNDED,
    BrokerModel,
    BrokerSource,
    DiskSink,
    ReferenceDaemon,
    Sample,
    WireSink,
    arrival_batch,
    lines_with_either_reason,
    output_lines,
    small_bundle,
    swap,
)
from tests.support.pipelines import toy_pipeline
from tests.support.runtimes import daemon_of
from tests.support.stores import copy_of_now

_NAMES = "abcdef"
_EXAMPLES = int(os.environ.get("STREAM_GRU_EXAMPLES", "20"))
_FAST = next((folder for folder in ("/dev/shm",) if Path(folder).is_dir()), None)  # noqa: S108 - nothing outlives a test


class _Decoder:
    """Messages are samples as JSON; calls ``seen`` for each."""

    def __init__(self, seen: Callable[[int, list[Sample]], None]) -> None:
        self._seen = seen

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        samples: list[Sample] = []
        for message in raw:
            number, found = json.loads(message.payload)
            mine = [(str(name), int(second), float(value)) for name, second, value in found]
            self._seen(number, mine)
            samples += mine
        return arrival_batch(samples)


class _Killed(BaseException):
    """The process was killed."""


class _MortalStore(Store):
    """Calls ``at`` before a transaction, in the middle of one and after it."""

    def __init__(self, folder: Path, at: Callable[[str], None]) -> None:
        super().__init__(folder)
        self._at, self._writes = at, False

    def open(self, repair: bool = True) -> None:
        super().open(repair)
        assert self._connection is not None
        self._connection.execute("PRAGMA synchronous=OFF")  # a kill of the process does not need more

    def write(self, changes: Commit) -> None:
        self._at("flushed")
        self._writes = True
        super().write(changes)
        self._writes = False
        self._at("written")

    def _end(self) -> None:
        if self._writes:
            self._at("before the end")
        super()._end()


class CheckpointMachine(RuleBasedStateMachine):
    """``pending``: the actions of the process since its last commit."""

    @initialize(evict=st.booleans(), most=st.integers(1, 3), stored=st.sampled_from([4, 100]), rows=st.integers(1, 6))
    def begin(self, evict: bool, most: int, stored: int, rows: int) -> None:
        """A daemon with room for ``most`` streams, which reads ``rows`` messages at a time."""
        self.root = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=_FAST))
        self.starts = 0
        self.folder = self.root / "0"
        self.evict, self.rows, self.seed = evict, rows, 0
        self.policy = StatePolicy(max_streams=most, evict=evict, max_stored_streams=stored)
        self.bound = UNBOUNDED if evict else most
        self.lines = lines_with_either_reason if evict else output_lines
        self.reference = ReferenceDaemon(0, self.bound, stored if evict else UNBOUNDED, self.lines)
        self.broker = BrokerModel(self.acknowledged)
        self.disk: list[bytes] = []
        self.world: dict[int, bytes] = {}
        self.clock = dict.fromkeys(_NAMES, 0)
        self.die_at = ""
        self.exported: StreamExport | None = None
        self.pending: list[Callable[[ReferenceDaemon], None]] = []
        self.position: Position | None = None
        self.start()

    def teardown(self) -> None:
        """Check the end state, then remove the files."""
        if hasattr(self, "checkpointer"):
            try:
                self.come_to_rest()
            finally:
                self.checkpointer.close()
                shutil.rmtree(self.root)

    def come_to_rest(self) -> None:
        """At the end every message that was not lost has been processed once, and every output is delivered."""
        for _ in range(self.broker.published + 1):
            self.read()
            self.commit()
            self.source.turn()
        expected = set(range(1, self.broker.published + 1))
        assert expected - set(self.reference.messages) <= self.broker.lost
        self.wire.turn(10**9)
        assert [self.world[number + 1] for number in range(len(self.world))] == self.disk == self.reference.outputs

    # ---- process start and end

    def start(self) -> None:
        """Recover, as `Daemon.run` does."""
        pipeline = toy_pipeline(small_bundle(self.seed), max_streams=self.bound)
        self.source, self.wire = BrokerSource(self.broker), WireSink(self.world, self.lines)
        self.watch = GapCounter(UNBOUNDED)
        shared = SharedStages(lambda batch: batch, pause_filter=PauseFilter())
        ingest = Ingest(SOURCE, _Decoder(self.decoded_batches), gaps=self.watch, shared=shared)
        parts = {"gaps:b": self.watch.state}
        self.checkpointer = Checkpointer(pipeline, _MortalStore(self.folder, self.at), parts, policy=self.policy)
        sinks: dict[str, Sink] = {"disk": DiskSink(self.disk, self.lines), "wire": self.wire}
        self.input = Input(SOURCE, self.source, {SOURCE: ingest})
        self.daemon = daemon_of([self.input], pipeline, sinks, checkpointer=self.checkpointer, batch_rows=self.rows)
        self.input.position = self.checkpointer.recover({SOURCE: self.source}, sinks).get(SOURCE)
        assert self.input.position == self.position
        self.check_committed()

    def at(self, place: str) -> None:
        """The process may be killed here."""
        if place == "written":
            self.settle()
        if self.die_at and place == self.die_at:
            self.kill()
            raise _Killed

    def kill(self) -> None:
        """Take what is on the disk now as all that survives."""
        self.starts += 1
        before, self.folder = self.folder, copy_of_now(self.folder, self.root / str(self.starts))
        self.dead = before

    def start_again(self) -> None:
        """Discard the dead process with its unsent data and start another one."""
        self.pending.clear()
        self.checkpointer.close()
        shutil.rmtree(self.dead)
        if self.reference.pipeline.manifest.model_id != small_bundle(self.seed).manifest.model_id:
            self.reference.swap(self.seed)
        self.die_at = ""
        self.start()

    def settle(self) -> None:
        """The actions are committed."""
        for happened in self.pending:
            happened(self.reference)
        self.pending.clear()
        self.position = self.input.position

    def decoded_batches(self, number: int, samples: list[Sample]) -> None:
        """The process receives a message."""
        self.pending.append(lambda reference: reference.message(number, samples))

    def acknowledged(self, number: int) -> None:
        """Nothing is acknowledged that is not committed."""
        assert number in self.reference.messages

    # ---- messages

    def publish(self, *samples: Sample) -> None:
        """One message."""
        self.broker.publish(json.dumps([self.broker.published + 1, samples]).encode())

    def sample(self, name: str, second: int) -> Sample:
        """Each sample has a unique value."""
        return name, second, float(second % 17) + _NAMES.index(name) / 8

    @rule(name=st.sampled_from(_NAMES), number=st.integers(1, 3), step=st.sampled_from([1, 1, 1, 2, 50]))
    def arrive(self, name: str, number: int, step: int) -> None:
        """Samples of one stream, perhaps after a gap."""
        seconds = [self.clock[name] + step + index for index in range(number)]
        self.clock[name] = seconds[-1]
        self.publish(*(self.sample(name, second) for second in seconds))

    @rule(names=st.lists(st.sampled_from(_NAMES), min_size=2, max_size=6))
    def arrive_of_several(self, names: list[str]) -> None:
        """One message with samples of several streams."""
        samples = []
        for name in names:
            self.clock[name] += 1
            samples.append(self.sample(name, self.clock[name]))
        self.publish(*samples)

    @rule(name=st.sampled_from(_NAMES))
    def duplicate(self, name: str) -> None:
        """The newest sample in a message of its own."""
        self.publish(self.sample(name, self.clock[name]))

    @rule(name=st.sampled_from(_NAMES))
    def reorder(self, name: str) -> None:
        """The later one first."""
        self.clock[name] += 2
        self.publish(self.sample(name, self.clock[name]), self.sample(name, self.clock[name] - 1))

    @rule(name=st.sampled_from(_NAMES), age=st.integers(1, 20))
    def late(self, name: str, age: int) -> None:
        """A very old sample."""
        self.publish(self.sample(name, self.clock[name] - age))

    # ---- the process

    @rule()
    def read(self) -> None:
        """One iteration of the loop."""
        self.daemon._read(self.input, 0.0)

    @rule()
    def commit(self) -> None:
        """The committed state equals the reference."""
        self.daemon.commit()
        self.settle()
        self.check_committed()

    @rule(names=st.lists(st.sampled_from(_NAMES), min_size=1, max_size=4))
    def go_on(self, names: list[str]) -> None:
        """The common case: samples arrive, are processed and committed."""
        self.arrive_of_several(names)
        self.read()
        self.commit()

    @rule(most=st.integers(1, 10))
    def turn(self, most: int) -> None:
        """Acknowledgements and outputs are sent."""
        self.source.turn()
        self.wire.turn(most)

    @rule(place=st.sampled_from(["now", "flushed", "before the end", "written", "committed"]))
    def crash(self, place: str) -> None:
        """A kill, perhaps during a commit."""
        if place == "committed":
            self.commit()
        self.die_at = place
        with suppress(_Killed):
            if place not in ("now", "committed"):
                self.daemon.commit()  # without anything to write it is not killed in there
            self.kill()
        self.start_again()

    @rule()
    def cut(self) -> None:
        """The connection is lost."""
        self.source.connect()

    @precondition(lambda self: self.broker.published)
    @rule()
    def lose_session(self) -> None:
        """The broker has lost the session."""
        self.source.connect(session_present=False)

    @rule(name=st.sampled_from(_NAMES) | st.none())
    def reset(self, name: str | None) -> None:
        """One stream or all, in memory or not."""
        if self.checkpointer.cache.reset(name):
            self.pending.append(lambda reference: reference.reset(name))

    @rule(name=st.sampled_from(_NAMES))
    def forget(self, name: str) -> None:
        """One stream, in memory or not."""
        if self.checkpointer.cache.has_stream(name):
            self.checkpointer.cache.delete_stream(name)
            self.pending.append(lambda reference: reference.forget(name))

    @rule(name=st.sampled_from(_NAMES))
    def export(self, name: str) -> None:
        """Export a stream as it is now."""
        self.exported = self.checkpointer.export_stream(name) or self.exported

    @rule()
    def take_in(self) -> None:
        """Import the exported stream, where there is room and the model is the same."""
        state = self.exported
        if state is None:
            return
        with suppress(StateError):
            self.checkpointer.import_stream(export_from_json(export_to_json(state)))
            self.pending.append(lambda reference: reference.take_in(state))

    @rule(other=st.booleans())
    def reload(self, other: bool) -> None:
        """As `Gateway.reload` does: a commit, another bundle or the same, a commit."""
        self.daemon.commit()
        self.settle()
        self.seed += other
        swap(self.daemon.pipeline, self.seed)
        self.checkpointer.cache.set_policy(self.policy)
        self.reference.swap(self.seed)
        self.commit()

    # ---- what must be true

    def check_committed(self) -> None:
        """All streams in memory, all that a start would load, and all outputs equal the reference."""
        expected = {name: self.seen(self.reference.pipeline, name) for name in self.reference.pipeline.streams}
        here = self.daemon.pipeline
        assert {name: self.seen(here, name) for name in here.streams}.items() <= expected.items()
        self.starts += 1
        copy = copy_of_now(self.folder, self.root / str(self.starts))
        found, watch = toy_pipeline(small_bundle(self.seed)), GapCounter(UNBOUNDED)
        checkpointer = Checkpointer(found, Store(copy), {"gaps:b": watch.state})
        checkpointer.recover({}, {"disk": DiskSink(self.disk), "wire": WireSink({})})
        checkpointer.close()
        shutil.rmtree(copy)
        assert {name: self.seen(found, name) for name in found.streams} == expected
        for name in _NAMES:
            assert watch.state.snapshot(name) == self.reference.watch.state.snapshot(name)
        assert self.disk == self.reference.outputs
        waiting = {row.number: row.payload for row in self.wire.waiting}
        assert [line for _, line in sorted({**self.world, **waiting}.items())] == self.reference.outputs

    def seen(self, pipeline: Pipeline, name: str) -> bytes | dict[str, bytes]:
        """A stream's row.

        For an evicted stream the order of a reset of all and a reload is unknown, only that one happened: either reason
        is valid.
        """
        row = pipeline.table.row(name)
        if not self.evict:
            return row
        columns = {column: array.tobytes() for column, array in split_row(pipeline.table.row_layout, row).items()}
        if columns["pending_reset"] == bytes([ResetReason.COMMAND]):
            columns["pending_reset"] = bytes([ResetReason.MODEL_CHANGED])
        return columns

    @invariant()
    def every_sample_is_accounted_for(self) -> None:
        """Received = applied + dropped; no message is processed twice; no uncommitted output is sent."""
        if hasattr(self, "daemon"):
            assert self.daemon.summary.balanced
            assert len(set(self.reference.messages)) == len(self.reference.messages)
            assert len(self.world) <= len(self.reference.outputs)


TestKeeping = CheckpointMachine.TestCase
TestKeeping.settings = settings(max_examples=_EXAMPLES, stateful_step_count=50, suppress_health_check=list(HealthCheck))
