"""The pause filter: keeps the samples of paused streams out of the pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from stream_gru.core.keyed_state import KeyedState, corrupt_state
from stream_gru.core.types import STREAM_ID, DropReason, SampleBatch

_MAX_NAMES = 1_000_000


class _Paused(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``all_paused`` False: ``names`` are paused; True: all streams but ``names``."""

    all_paused: bool = False
    names: Annotated[frozenset[str], Meta(max_length=_MAX_NAMES)] = frozenset()


_NONE = _Paused()


class _PausedState(KeyedState[_Paused]):
    """One record for all streams, under the key "" ; none while nothing is paused."""

    def __init__(self) -> None:
        super().__init__(_Paused, "paused streams")

    def _load(self, key: str, data: bytes) -> _Paused | None:
        record = super()._load(key, data)
        if key or record is None or not all(map(STREAM_ID.fullmatch, record.names)):
            raise corrupt_state("paused streams", "expected names of streams")
        return record


class PauseFilter:
    """Rejects the samples of paused streams.

    Only the loop changes it; other threads may read.  While all streams are paused, a resumed stream runs and the
    others stay paused, new ones too.  ``state`` keeps pauses across restarts.
    """

    def __init__(self) -> None:
        self.state: KeyedState[_Paused] = _PausedState()

    def __contains__(self, stream: str) -> bool:
        paused = self._paused
        return (stream in paused.names) != paused.all_paused

    @property
    def _paused(self) -> _Paused:
        return self.state.get("") or _NONE

    @property
    def all_paused(self) -> bool:
        """Whether all streams are paused, except those in `resumed`."""
        return self._paused.all_paused

    @property
    def names(self) -> tuple[str, ...]:
        """The streams paused by name, sorted; empty while `all_paused`."""
        paused = self._paused
        return () if paused.all_paused else tuple(sorted(paused.names))

    @property
    def resumed(self) -> tuple[str, ...]:
        """The streams resumed while `all_paused`, sorted."""
        paused = self._paused
        return tuple(sorted(paused.names)) if paused.all_paused else ()

    def count(self, streams: Iterable[str]) -> int:
        """Return how many of these streams are paused."""
        paused = self._paused
        if paused == _NONE:
            return 0
        return sum((stream in paused.names) != paused.all_paused for stream in streams)

    def pause(self, stream: str | None) -> None:
        """Pause one stream, or with None all."""
        self._set(stream, paused=True)

    def resume(self, stream: str | None) -> None:
        """Resume one stream, or with None all."""
        self._set(stream, paused=False)

    def _set(self, stream: str | None, *, paused: bool) -> None:
        before = self._paused
        if stream is None:
            after = _Paused(paused)
        elif before.all_paused == paused:
            after = _Paused(paused, before.names - {stream})
        else:
            after = _Paused(before.all_paused, before.names | {stream})
        if after == _NONE:
            self.state.delete("")
        elif after != before:
            self.state.put("", after)

    def apply(self, batch: SampleBatch) -> SampleBatch:
        """Return the batch with rows of paused streams rejected; the batch itself if there are none."""
        if self._paused == _NONE:
            return batch
        return batch.rejecting(
            np.array([stream in self for stream in batch.stream_names], np.bool_)[batch.stream_index], DropReason.PAUSED
        )
