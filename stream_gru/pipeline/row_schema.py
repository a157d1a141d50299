"""The schema of stored rows: how their bytes are read, and which columns another model can use.

{"row_schema": 3, "model_id": "...", "channels": ["flow", ...], "period_s": 1.0, "columns": [["h", "<f4", [40]], ...]}
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

FORMAT = 3  # goes up when the meaning of a column changes
_DTYPE = re.compile(r"[<|][bfiu][1248]")
_CLOCK = frozenset(("max_event_ns", "episode", "pending_reset"))


@dataclass(frozen=True, slots=True)
class RowSchema:
    """What a row belongs to: a model with its channels and period (seconds), and the columns of a state table."""

    model_id: str
    channels: tuple[str, ...]
    period_s: float
    columns: RowLayout

    @staticmethod
    def of(manifest: Manifest, columns: RowLayout) -> RowSchema:
        """Return the schema of a model's rows."""
        names = tuple(channel.name for channel in manifest.channels)
        return RowSchema(manifest.model_id, names, manifest.period_s, columns)

    @staticmethod
    def read(text: str) -> RowSchema:
        """Parse what `text` returned.  Raises StateError."""
        try:
            data = json.loads(text)
            found = data["row_schema"]
            if found != FORMAT:
                raise StateError(f"expected row schema {FORMAT}, got {found!r:.20} of another version")
            columns = tuple((str(name), _dtype(kind), tuple(map(int, shape))) for name, kind, shape in data["columns"])
            period_s = float(data["period_s"])
            if not math.isfinite(period_s):
                raise ValueError(f"period_s: expected a number of seconds, got {period_s}")
            return RowSchema(str(data["model_id"]), tuple(map(str, data["channels"])), period_s, columns)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise StateError(f"row schema cannot be read: {error!r:.200}") from error

    @property
    def text(self) -> str:
        """The schema as JSON; equal schemas give equal texts."""
        return json.dumps(
            {
                "row_schema": FORMAT,
                "model_id": self.model_id,
                "channels": self.channels,
                "period_s": self.period_s,
                "columns": self.columns,
            }
        )

    def compatible_columns(self, new: RowSchema) -> Collection[str]:
        """Return the columns that a stream keeps under ``new``.

        The same model keeps all columns.  Another one keeps the clock, and the last values if channels and period are
        equal.
        """
        mine = {name: (kind, shape) for name, kind, shape in self.columns}
        equal = {name for name, kind, shape in new.columns if mine.get(name) == (kind, shape)}
        if self.model_id == new.model_id:
            return equal
        if self.channels == new.channels and self.period_s == new.period_s:
            return equal & {column.name for column in conditioning_columns(len(new.channels))}
        return equal & _CLOCK


def _dtype(text: object) -> str:
    """Return a numeric dtype as numpy writes it; numpy itself would accept much more.  Raises ValueError."""
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError(f"expected a dtype such as <f4, got {text!r:.20}")
    return text
