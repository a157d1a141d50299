"""What was stored comes back into the parts that remember it; what is damaged resets one stream and no more."""

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

_MOST_NAMED = 10
_CHECKSUM = "its checksum is wrong"


@dataclass(slots=True)
class KeptCounts:
    """What has happened to states since the process began."""

    damaged: int = 0
    evicted: int = 0
    restored: int = 0
    commits: int = 0


class Restorer:
    """Puts rows and memories back, and counts those that cannot be used.

    ``refuse_other_model``: a state of another model is an error, instead of being reset.
    """

    def __init__(self, pipeline: Pipeline, counts: KeptCounts, *, refuse_other_model: bool) -> None:
        self._pipeline, self._counts = pipeline, counts
        self.refuse_other_model = refuse_other_model
        self._forms: dict[str, RowSchema] = {}

    def stream(self, stored: StoredRow, all_reset_at: int) -> bool:
        """Put a stream into the pipeline; return whether its hidden state goes on.

        ``all_reset_at``: number of the commit behind which all streams were to be reset.
        """
        try:
            if stored.row is None:
                raise StateError(_CHECKSUM)
            form = self._form(stored.schema)
            same = self._pipeline.restore_stream(stored.name, form, stored.row)
        except StateError as error:
            self._tell_damaged(f"stream {stored.name}: its stored state cannot be used: {error}; it begins anew")
            self._pipeline.reset_damaged(stored.name, ResetReason.STATE_DAMAGED)
            return False
        if stored.commit_no <= all_reset_at:
            self._pipeline.reset(stored.name)
        return same

    def part(self, name: str, part: Stateful, found: Mapping[str, bytes | None]) -> None:
        """Put all that a part remembered back into it."""
        for key, data in found.items():
            self._one(name, part, key, data)

    def memories(self, stream: str, parts: Mapping[str, Stateful], found: Mapping[str, bytes | None]) -> None:
        """Put what all parts remembered of one stream back into them."""
        for name, data in found.items():
            if name in parts:
                self._one(name, parts[name], stream, data)

    def _one(self, name: str, part: Stateful, key: str, data: bytes | None) -> None:
        try:
            if data is None:
                raise StateError(_CHECKSUM)
            part.restore(key, data)
        except StateError as error:
            self._tell_damaged(f"{name} of {key or 'all streams'}: what was stored cannot be used: {error}")

    def _form(self, text: str) -> RowSchema:
        """The form that a text says: most rows have the same.  Raises StateError."""
        if text not in self._forms:
            self._forms = {text: RowSchema.read(text)}
        return self._forms[text]

    def check_models(self, forms: Iterable[str], last: str) -> None:
        """Refuse what the last run stored under another model, where that is wanted.  Raises IncompatibleStateError.

        ``last``: model of the last run, where that is known.  Older rows, of streams that were evicted long ago, may be
        of any: they are reset when they come back.
        """
        mine = self._pipeline.manifest.model_id
        theirs = [last] if last else self._models(forms)
        if self.refuse_other_model and any(model != mine for model in theirs):
            raise IncompatibleStateError(
                f"the stored states are of model {next(model for model in theirs if model != mine)}, the bundle is "
                f'{mine}; give back that bundle, or set run.on_model_change = "reset"'
            )

    def _models(self, forms: Iterable[str]) -> list[str]:
        """Models of forms; one that cannot be read is told when its stream comes back."""
        models = []
        for text in forms:
            with suppress(StateError):
                models.append(self._form(text).model_id)
        return models

    def _tell_damaged(self, text: str) -> None:
        self._counts.damaged += 1
        if self._counts.damaged <= _MOST_NAMED:
            log.error("%s", text)
        elif self._counts.damaged == _MOST_NAMED + 1:
            log.error("more stored states cannot be used; see stream_gru_states_damaged_total")
