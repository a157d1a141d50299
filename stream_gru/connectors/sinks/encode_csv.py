"""Rows as CSV for spreadsheets: one column for each number."""

from __future__ import annotations

import csv
import io

import numpy as np

from stream_gru.core.prediction import label_of, status_text
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import OutputSpec, PredictionBatch, ResetReason, Status


class CsvEncoder:
    """Encodes batches as CSV lines; `header` names the columns, e.g. ``flow+1``, ``flow+1_lower``, ``p_normal``."""

    form = "csv"

    def header(self, spec: OutputSpec, alarm: bool = False) -> bytes:
        """The line with the names; ``alarm``: with a column that says whether an output is one."""
        names = ["stream", "time"]
        for target in spec.targets:
            for h in range(1, spec.horizon + 1):
                names += [f"{target}+{h}", f"{target}+{h}_lower", f"{target}+{h}_upper"]
        names += ["class", *(f"p_{label}" for label in spec.labels)] if spec.labels else []
        names += ["alarm"] if alarm else []
        return _lines([[*names, "status", "reset", "steps", "model_id"]])

    def encode(self, batch: PredictionBatch) -> bytes:
        """Return all rows, each ending in a line end; what is not a number is an empty field."""
        spec = batch.spec
        times = format_iso(batch.time_ns)
        numbers = _forecast_columns(batch)
        rows = []
        for i in range(len(batch)):
            classes: list[object] = []
            if batch.probabilities is not None:
                label = label_of(spec, batch.probabilities[i])
                text = "|".join(label) if isinstance(label, list) else label or ""
                classes = [text, *_cells(batch.probabilities[i])]
            if batch.alarm is not None:
                classes.append("true" if batch.alarm[i] else "false")
            steps = int(batch.steps_since_reset[i])
            reset = ResetReason(int(batch.reset[i]))
            status = status_text(Status(int(batch.status[i])), steps, spec.warm_up)
            tail = [status, "" if reset is ResetReason.NONE else reset.text, steps, spec.model_id]
            rows.append([batch.stream_names[batch.stream_index[i]], times[i], *_cells(numbers[i]), *classes, *tail])
        return _lines(rows)


def _forecast_columns(batch: PredictionBatch) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(M, D * H * 3): forecast, lower and upper end side by side."""
    if batch.forecast is None:
        return np.zeros((len(batch), 0), np.float32)
    nothing = np.full_like(batch.forecast, np.nan)
    parts = [part if part is not None else nothing for part in (batch.forecast, batch.lower, batch.upper)]
    return np.stack(parts, axis=-1).reshape(len(batch), 3 * batch.forecast[:1].size if len(batch) else 0)


def _cells(row: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[str]:
    return [str(number) if np.isfinite(number) else "" for number in row]


def _lines(rows: list[list[object]] | list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
