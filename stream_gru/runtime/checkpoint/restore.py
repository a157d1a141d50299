"""Puts stored rows and component states back; a damaged one resets its stream and no other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.core.protocols import Stateful
from stream_gru.core.types import ResetReason
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.runtime.checkpoint.store import StoredRow

log = logging.getLogger(__name__)

_LOGGED = 10
_CHECKSUM = "wrong checksum"


@dataclass(slots=True)
class CheckpointCounts:
    """Counts since the process started."""

    damaged: int = 0
    evicted: int = 0
    restored: int = 0
    commits: int = 0


class Restorer:
    """Restores rows and component states, and counts those that cannot be used.

    ``reject_other_model``: a state of another model is an error instead of a reset.
    """

    def __init__(self, pipeline: Pipeline, counts: CheckpointCounts, *, reject_other_model: bool) -> None:
        self._pipeline, self._counts = pipeline, counts
        self.reject_other_model = reject_other_model
        self._schemas: dict[str, RowSchema] = {}

    def stream(self, stored: StoredRow, all_reset_at: int) -> bool:
        """Restore a stream into the pipeline; return whether its hidden state is kept.

        ``all_reset_at``: number of the last commit before a reset of all streams.
        """
        try:
            if stored.row is None:
                raise StateError(_CHECKSUM)
            kept = self._pipeline.restore_stream(stored.name, self._schema(stored.schema), stored.row)
        except StateError as error:
            self._log_damaged(f"stream {stored.name}: stored state cannot be used: {error}; the stream is reset")
            self._pipeline.reset_damaged(stored.name, ResetReason.STATE_DAMAGED)
            return False
        if stored.commit_no <= all_reset_at:
            self._pipeline.reset(stored.name)
        return kept

    def component(self, name: str, component: Stateful, found: Mapping[str, bytes | None]) -> None:
        """Restore all states of one component, given by key."""
        for key, data in found.items():
            self._restore(name, component, key, data)

    def components(self, stream: str, components: Mapping[str, Stateful], found: Mapping[str, bytes | None]) -> None:
        """Restore one stream's states of all components, given by component."""
        for name, data in found.items():
            if name in components:
                self._restore(name, components[name], stream, data)

    def _restore(self, name: str, component: Stateful, key: str, data: bytes | None) -> None:
        try:
            if data is None:
                raise StateError(_CHECKSUM)
            component.restore(key, data)
        except StateError as error:
            owner = f"stream {key}" if key else "all streams"
            self._log_damaged(f"{owner}: stored state of {name} cannot be used: {error}")

    def _schema(self, text: str) -> RowSchema:
        """Parse a schema; most rows have the same one.  Raises StateError."""
        if text not in self._schemas:
            self._schemas = {text: RowSchema.read(text)}
        return self._schemas[text]

    def check_models(self, schemas: Iterable[str], last_model: str) -> None:
        """Raise IncompatibleStateError if the last run had another model and ``reject_other_model`` is set.

        ``last_model`` is empty if it is unknown.  Older rows, of streams that were evicted before, may be of any model:
        they are reset when they are restored.
        """
        mine = self._pipeline.manifest.model_id
        stored = [last_model] if last_model else self._models(schemas)
        if self.reject_other_model and any(model != mine for model in stored):
            other = next(model for model in stored if model != mine)
            raise IncompatibleStateError(
                f"expected states of model {mine}, which is the bundle's, got states of model {other}; "
                'use the bundle of that model, or set run.on_model_change = "reset"'
            )

    def _models(self, schemas: Iterable[str]) -> list[str]:
        """Return the models of all readable schemas; `stream` reports the others."""
        models = []
        for text in schemas:
            with suppress(StateError):
                models.append(self._schema(text).model_id)
        return models

    def _log_damaged(self, text: str) -> None:
        self._counts.damaged += 1
        if self._counts.damaged <= _LOGGED:
            log.error("%s", text)
        elif self._counts.damaged == _LOGGED + 1:
            log.error("more stored states cannot be used; see stream_gru_states_damaged_total")
