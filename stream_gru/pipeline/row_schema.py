"""The form of stored rows: how their bytes are read, and which of a stream another model can take over.

{"model_id": "...", "channels": ["flow", ...], "period_s": 1.0, "columns": [["h", "<f4", [40]], ...]}
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection
from dataclasses import dataclass

from stream_gru.core.errors import StateError
from stream_gru.model.manifest import Manifest
from stream_gru.pipeline.conditioning.spec import conditioning_columns
from stream_gru.pipeline.state_table import RowLayout

_KIND = re.compile(r"[<|][bfiu][1248]")
_CLOCK = frozenset(("max_event_ns", "episode", "pending_reset"))


@dataclass(frozen=True, slots=True)
class RowSchema:
    """What a row is of: a model, its channels and period (seconds), and the columns of a table."""

    model_id: str
    channels: tuple[str, ...]
    period_s: float
    columns: RowLayout

    @staticmethod
    def of(manifest: Manifest, columns: RowLayout) -> RowSchema:
        """The form of the rows of a model."""
        names = tuple(channel.name for channel in manifest.channels)
        return RowSchema(manifest.model_id, names, manifest.period_s, columns)

    @staticmethod
    def read(text: str) -> RowSchema:
        """Read what `text` gave.  Raises StateError."""
        try:
            data = json.loads(text)
            columns = tuple((str(name), _kind(kind), tuple(map(int, shape))) for name, kind, shape in data["columns"])
            period_s = float(data["period_s"])
            if not math.isfinite(period_s):
                raise ValueError(f"period_s: expected a number of seconds, got {period_s}")
            return RowSchema(str(data["model_id"]), tuple(map(str, data["channels"])), period_s, columns)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise StateError(f"the form of stored rows cannot be read: {error!r:.200}") from error

    @property
    def text(self) -> str:
        """As JSON; the same form always gives the same text."""
        return json.dumps(
            {
                "model_id": self.model_id,
                "channels": self.channels,
                "period_s": self.period_s,
                "columns": self.columns,
            }
        )

    def compatible_columns(self, new: RowSchema) -> Collection[str]:
        """The columns that a stream keeps under ``new``.

        All of them under the same model; else its clock, and its last values where channels and period are the same.
        """
        mine = {name: (kind, shape) for name, kind, shape in self.columns}
        fitting = {name for name, kind, shape in new.columns if mine.get(name) == (kind, shape)}
        if self.model_id == new.model_id:
            return fitting
        if self.channels == new.channels and self.period_s == new.period_s:
            return fitting & {column.name for column in conditioning_columns(len(new.channels))}
        return fitting & _CLOCK


def _kind(text: object) -> str:
    """How numpy writes a type of numbers, and nothing else that it would read.  Raises ValueError."""
    if not isinstance(text, str) or not _KIND.fullmatch(text):
        raise ValueError(f"expected a type such as <f4, got {text!r:.20}")
    return text
