"""One stream as a file: to look at, to keep, or to take to another gateway.

    {"stream_gru_state": 1, "stream": "pump-7", "model_id": "...", "form": "...", "row": "base64",
     "memories": {"clock:mqtt": "base64"}, "checksum": 123}

The row is bound to its model: it means nothing to another one, and is refused there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import STREAM_ID, ResetReason
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.pipeline.state_table import split_row
from stream_gru.runtime.checkpoint.checksum import checksum
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.checkpoint.validate_state import require_sound
from stream_gru.runtime.control.commands import MAX_STATE_BYTES

VERSION = 1
ALL_RESET = "all_reset_at"  # number of the commit behind which a reset of all streams was asked for


class Exported(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A stream's row of the table, what other parts remember of it by part, and whose model it is."""

    stream_gru_state: int
    stream: str
    model_id: str
    form: str
    row: bytes
    memories: dict[str, bytes]
    checksum: int


def exported(stream: str, form: RowSchema, row: bytes, memories: Mapping[str, bytes | None]) -> Exported:
    """Put it together."""
    whole = {part: data for part, data in sorted(memories.items()) if data is not None}
    return Exported(VERSION, stream, form.model_id, form.text, row, whole, _checksum(stream, form.text, row, whole))


def exported_from(store: Store, stream: str) -> Exported | None:
    """A stream as a store has it; None when it is unknown.  Raises StateError when it is damaged, StoreError."""
    found = store.row(stream)
    if found is None:
        return None
    if found.row is None:
        raise StateError(f"stream {stream}: its stored state is damaged; forget it, or let it begin anew by itself")
    form, row = RowSchema.read(found.schema), found.row
    if found.commit_no <= store.number(ALL_RESET, -1):
        row = reset_row(form, row)  # what its next sample would find
    return exported(stream, form, row, store.states_of_stream(stream))


def encoded(state: Exported) -> bytes:
    """As JSON, bytes in base64."""
    return msgspec.json.encode(state)


def decoded(data: bytes) -> Exported:
    """Read what `encoded` gave, and make sure that nothing of it was changed.  Raises StateError."""
    if len(data) > MAX_STATE_BYTES:
        raise StateError(f"expected a state of at most {MAX_STATE_BYTES} bytes, got {len(data)}")
    try:
        state = msgspec.json.decode(data, type=Exported)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise StateError(f"expected a state written by `stream-gru state export`: {error}") from error
    if state.stream_gru_state != VERSION:
        raise StateError(f"expected a state of version {VERSION}, got version {state.stream_gru_state}")
    if not STREAM_ID.fullmatch(state.stream):
        raise StateError(f"stream: expected 1 to 128 of the characters {STREAM_ID.pattern}, got {state.stream!r:.80}")
    if state.checksum != _checksum(state.stream, state.form, state.row, state.memories):
        raise StateError(f"stream {state.stream}: the checksum is wrong: the file was changed or damaged")
    form = RowSchema.read(state.form)
    if form.model_id != state.model_id:
        raise StateError(f"stream {state.stream}: its row is of another model than {state.model_id!r:.80}")
    try:
        require_sound(form, split_row(form.columns, state.row))
    except StateError as error:
        raise StateError(f"stream {state.stream}: {error}") from error
    return state


def require_same_model(state: Exported, form: RowSchema) -> None:
    """Refuse a state of another model, or of another version's table.  Raises IncompatibleStateError."""
    theirs = RowSchema.read(state.form)
    if theirs.model_id != form.model_id:
        raise IncompatibleStateError(
            f"stream {state.stream}: expected a state of model {form.model_id}, got one of {theirs.model_id}"
        )
    if set(theirs.columns) != set(form.columns):
        raise IncompatibleStateError(f"stream {state.stream}: expected the columns of this version, got others")


def as_dict(state: Exported) -> dict[str, Any]:
    """What people want to know of it."""
    columns = split_row(RowSchema.read(state.form).columns, state.row)
    h = columns["h"]
    applied = int(columns["applied_ns"])
    pending = ResetReason(int(columns["pending_reset"]))
    facts: dict[str, Any] = {
        "stream": state.stream,
        "model_id": state.model_id,
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
        "bytes": len(state.row) + sum(map(len, state.memories.values())),
        "memories": sorted(state.memories),
    }
    return facts


def reset_row(form: RowSchema, row: bytes, reason: ResetReason = ResetReason.COMMAND) -> bytes:
    """The row with a reset before the next step; the first reason stands.  Raises StateError."""
    columns = split_row(form.columns, row)
    if columns["pending_reset"] in (ResetReason.NONE, ResetReason.NON_FINITE_STATE):
        columns["pending_reset"] = np.array(reason, np.uint8)
    return b"".join(
        np.ascontiguousarray(columns[name]).astype(np.dtype(kind), copy=False).tobytes()
        for name, kind, _ in form.columns
    )


def _number(value: np.floating[Any]) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _checksum(stream: str, form: str, row: bytes, memories: Mapping[str, bytes]) -> int:
    parts = [part for name, data in sorted(memories.items()) for part in (name, data)]
    return checksum(stream, form, row, *parts)
