"""What a daemon that is killed again and again must be like: a pipeline that keeps everybody and never dies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from stream_gru.core.types import NS_PER_S, SampleBatch
from stream_gru.model.bundle import Bundle
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.runtime.checkpoint.state_export import Exported
from stream_gru.runtime.ingest.sequence_gaps import SequenceWatch
from tests.support.models import make_bundle
from tests.support.output_models import Lines
from tests.support.streams import START_NS, calibrated, toy_pipeline

UNBOUNDED = 2**31

Sample = tuple[str, int, float]
"""Stream, seconds, value; its number is that of its second."""


@cache
def bundle_of(seed: int) -> Bundle:
    """A small model; another one for another seed."""
    return calibrated(make_bundle(channels=1, labels=0, targets=1, horizon=2, units=(2,), warm_up=1, seed=seed))


def batch_of(samples: Sequence[Sample]) -> SampleBatch:
    """Samples of one channel in the order of arrival."""
    names = tuple(dict.fromkeys(name for name, _, _ in samples))
    seconds = np.array([second for _, second, _ in samples], np.int64)
    return SampleBatch(
        stream_names=names,
        stream_index=np.array([names.index(name) for name, _, _ in samples], np.int32),
        time_ns=START_NS + seconds * NS_PER_S,
        values=np.array([value for _, _, value in samples], np.float32).reshape(-1, 1),
        device_seq=seconds,
    )


class Reference:
    """What was committed, taken in by a pipeline that keeps everybody in memory and is never killed."""

    def __init__(self, seed: int, max_streams: int, max_stored: int, lines: Lines) -> None:
        self._lines = lines
        self.pipeline = toy_pipeline(bundle_of(seed), max_streams=max_streams)
        self.watch = SequenceWatch(UNBOUNDED)
        self.outputs: list[bytes] = []
        self.messages: list[int] = []
        self._max_stored, self._names = max_stored, set[str]()

    def message(self, number: int, samples: Sequence[Sample]) -> None:
        """Take in a message; streams beyond those that may be stored are left out."""
        self.messages.append(number)
        for name in dict.fromkeys(name for name, _, _ in samples):
            if len(self._names) < self._max_stored:
                self._names.add(name)
        batch = batch_of([one for one in samples if one[0] in self._names])
        self.watch.observe(batch)
        self.outputs += self._lines(self.pipeline.process(batch))

    def reset(self, name: str | None) -> None:
        """Somebody has asked for it."""
        self.pipeline.reset(name)

    def forget(self, name: str) -> None:
        """The stream has never been."""
        self.pipeline.table.evict(name)
        self.watch.memory.evict(name)
        self._names.remove(name)

    def take_in(self, state: Exported) -> None:
        """The stream is this one."""
        name = state.stream
        self.pipeline.restore_stream(name, RowSchema.read(state.form), state.row)
        self.watch.memory.evict(name)
        for data in state.memories.values():
            self.watch.memory.restore(name, data)
        self._names.add(name)

    def swap(self, seed: int) -> None:
        """The model is another one."""
        swap(self.pipeline, seed)


def swap(pipeline: Pipeline, seed: int) -> None:
    """Have a pipeline go on with another model, or the same."""
    pipeline.swap(bundle_of(seed), toy_pipeline(bundle_of(seed)).engine)
