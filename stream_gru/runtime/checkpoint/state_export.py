"""One stream as a JSON file, to inspect it, to keep it, or to move it to another gateway.

    {"stream_gru_state": 2, "stream": "pump-7", "model_id": "...", "row_schema": "...", "row": "base64",
     "components": {"clock:mqtt": "base64"}, "checksum": 123}

The row belongs to its model; another model rejects it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import STREAM_ID, ResetReason
from stream_gru.pipeline.conditioning.spec import conditioning_columns
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.pipeline.state_table import split_row
from stream_gru.runtime.checkpoint.sqlite_file import checksum
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.control.commands import MAX_STATE_BYTES

FORMAT = 2
ALL_RESET = "all_reset_at"  # number of the last commit before a reset of all streams was requested


class StreamExport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The row of a stream, its state in other components by name, and the model it belongs to."""

    stream_gru_state: int
    stream: str
    model_id: str
    row_schema: str
    row: bytes
    components: dict[str, bytes]
    checksum: int


def build_export(stream: str, schema: RowSchema, row: bytes, states: Mapping[str, bytes | None]) -> StreamExport:
    """Return the export of a stream; components without a state are left out."""
    components = {name: data for name, data in sorted(states.items()) if data is not None}
    crc = _checksum(stream, schema.text, row, components)
    return StreamExport(FORMAT, stream, schema.model_id, schema.text, row, components, crc)


def export_from_store(store: Store, stream: str) -> StreamExport | None:
    """Return a stream as it is stored; None if it is unknown.  Raises StateError when it is damaged, StoreError."""
    found = store.row(stream)
    if found is None:
        return None
    if found.row is None:
        raise StateError(f"stream {stream}: stored state is damaged; forget the stream, or wait for its reset")
    schema, row = RowSchema.read(found.schema), found.row
    if found.commit_no <= store.value(ALL_RESET, -1):
        row = reset_row(schema, row)  # as its next sample would find it
    return build_export(stream, schema, row, store.states_of_stream(stream))


def export_to_json(export: StreamExport) -> bytes:
    """Return the export as JSON, bytes as base64."""
    return msgspec.json.encode(export)


def export_from_json(data: bytes) -> StreamExport:
    """Read and validate what `export_to_json` wrote.  Raises StateError."""
    if len(data) > MAX_STATE_BYTES:
        raise StateError(f"expected a state of at most {MAX_STATE_BYTES} bytes, got {len(data)}")
    try:
        number = msgspec.json.decode(data, type=_FormatNumber).stream_gru_state
        if number != FORMAT:
            raise StateError(
                f"expected a state of format {FORMAT}, got format {number}; export it with this version of stream-gru"
            )
        export = msgspec.json.decode(data, type=StreamExport)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StateError(f"expected a file written by `stream-gru state export`: {error}") from error
    if not STREAM_ID.fullmatch(export.stream):
        raise StateError(f"stream: expected 1 to 128 of the characters {STREAM_ID.pattern}, got {export.stream!r:.80}")
    if export.checksum != _checksum(export.stream, export.row_schema, export.row, export.components):
        raise StateError(f"stream {export.stream}: wrong checksum: the file was changed or damaged")
    schema = RowSchema.read(export.row_schema)
    if schema.model_id != export.model_id:
        raise StateError(
            f"stream {export.stream}: expected a row of model {export.model_id!r:.80}, got {schema.model_id!r:.80}"
        )
    try:
        validate_columns(schema, split_row(schema.columns, export.row))
    except StateError as error:
        raise StateError(f"stream {export.stream}: {error}") from error
    return export


class _FormatNumber(msgspec.Struct):
    stream_gru_state: int


def require_same_model(export: StreamExport, schema: RowSchema) -> None:
    """Raise IncompatibleStateError when the export belongs to another model or has other columns than ``schema``."""
    theirs = RowSchema.read(export.row_schema)
    if theirs.model_id != schema.model_id:
        raise IncompatibleStateError(
            f"stream {export.stream}: expected a state of model {schema.model_id}, got one of {theirs.model_id}"
        )
    if set(theirs.columns) != set(schema.columns):
        raise IncompatibleStateError(f"stream {export.stream}: expected the columns of this version, got others")


def describe(export: StreamExport) -> dict[str, Any]:
    """Return the facts of a state that `stream-gru state show` prints."""
    columns = split_row(RowSchema.read(export.row_schema).columns, export.row)
    h = columns["h"]
    applied = int(columns["applied_ns"])
    pending = ResetReason(int(columns["pending_reset"]))
    return {
        "stream": export.stream,
        "model_id": export.model_id,
        "time": format_iso(np.array([applied], np.int64))[0] if applied > 0 else None,
        "steps_since_reset": int(columns["steps_since_reset"]),
        "reset_before_next": None if pending is ResetReason.NONE else pending.text,
        "hidden": {
            "size": int(h.size),
            "finite": bool(np.isfinite(h).all()),
            "norm": _number(np.linalg.norm(h.astype(np.float64))),
            "largest": _number(np.abs(h).max(initial=0.0)),
        },
        "last_values": [_number(value) for value in columns["applied_values"]],
        "bytes": len(export.row) + sum(map(len, export.components.values())),
        "components": sorted(export.components),
    }


def reset_row(schema: RowSchema, row: bytes, reason: ResetReason = ResetReason.COMMAND) -> bytes:
    """Return the row with a reset before the next step; an earlier pending reason is kept.  Raises StateError."""
    columns = split_row(schema.columns, row)
    if columns["pending_reset"] in (ResetReason.NONE, ResetReason.NON_FINITE_STATE):
        columns["pending_reset"] = np.array(reason, np.uint8)
    return b"".join(
        np.ascontiguousarray(columns[name]).astype(np.dtype(kind), copy=False).tobytes()
        for name, kind, _ in schema.columns
    )


def _number(value: np.floating[Any]) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _checksum(stream: str, schema: str, row: bytes, components: Mapping[str, bytes]) -> int:
    parts = [part for name, data in sorted(components.items()) for part in (name, data)]
    return checksum(stream, schema, row, *parts)


_MAX_COUNT = 2.0**53  # whole numbers that JSON represents exactly
# Valid range of the columns that must be finite.
_RANGES: dict[str, tuple[float, float]] = {
    "invalid_run": (0, 2**30),
    "steps_since_reset": (0, _MAX_COUNT),
    "scored_steps": (0, _MAX_COUNT),
    "interval_scale": (1e-3, 1e6),
    "block_truths": (0, 2**30),
    "block_misses": (0, 2**30),
    "score_sums": (0, np.finfo(np.float64).max),
    "consecutive_misses": (0, 2**30),
}
_IMPUTED_FROM = ("applied_values", "last_valid")  # source of inserted steps and missing channels


def validate_columns(schema: RowSchema, columns: Mapping[str, NDArray[Any]]) -> None:
    """Raise StateError for a row that no pipeline writes.

    The hidden state may hold anything: a non-finite one is reset by the pipeline.
    """
    _require_columns(schema)
    reason = int(columns["pending_reset"])
    if reason not in frozenset(ResetReason):
        raise StateError(f"pending_reset: expected the number of a reset reason, got {reason}")
    for name, (least, most) in _RANGES.items():
        if name in columns and not ((columns[name] >= least) & (columns[name] <= most)).all():
            raise StateError(f"{name}: expected numbers from {least:g} to {most:g}, got others")
    for name in _IMPUTED_FROM:
        if np.isinf(columns[name]).any():
            raise StateError(f"{name}: expected finite numbers, or NaN for none, got infinity")
    continues = reason in (ResetReason.NONE, ResetReason.NON_FINITE_STATE)
    if continues and np.isnan(columns["applied_values"]).any():
        raise StateError("applied_values: expected numbers, as no reset is pending, got NaN")


def _require_columns(schema: RowSchema) -> None:
    """Check that the columns common to all models are there, with their types and shapes.  Raises StateError."""
    found = {name: (kind, shape) for name, kind, shape in schema.columns}
    for column in conditioning_columns(len(schema.channels)):
        expected = np.dtype(column.dtype).newbyteorder("<").str, column.shape
        if found.get(column.name) != expected:
            raise StateError(f"{column.name}: expected a column {expected}, got {found.get(column.name)}")
    kind, shape = found.get("h", ("", ()))
    if kind != "<f4" or len(shape) != 1:
        raise StateError(f"h: expected a column ('<f4', (units,)), got {(kind, shape)}")
