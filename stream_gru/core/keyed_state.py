"""Per-stream state of a component, and its bytes in the store: msgpack, deterministic.

Every component that keeps a record for each stream has a `KeyedState` as its ``state``: device clocks, gap counters,
channel joins, throttles, file headers.  It tracks which records a commit has to write.
"""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from stream_gru.core.errors import StateError

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

T = TypeVar("T")


def encode(record: object) -> bytes:
    """Return a record as msgpack; equal records give equal bytes."""
    return msgspec.msgpack.encode(record, order="deterministic")


def decode(data: bytes, form: type[T], owner: str) -> T:
    """Read what `encode` wrote.  Raises StateError, which names ``owner``, when the bytes are not a valid ``form``.

    Lists of ``form`` need a maximum length: a few bytes can announce a list that fills the memory.
    """
    try:
        return msgspec.msgpack.decode(data, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt_state(owner, str(error)) from error


def corrupt_state(owner: str, reason: str) -> StateError:
    """Return the error for stored bytes that cannot be used."""
    return StateError(
        f"stored state of {owner} is corrupt: {reason}; move the state directory away to start without it"
    )


class KeyedState(Generic[T]):
    """One record for each key, usually a stream; implements `Stateful`.

    ``form`` is the type of a stored record, a msgspec Struct; ``name`` names the component in errors.  A record may be
    changed in place, followed by `touch`.  A subclass whose records differ from their stored form overrides `_dump`
    and `_load`.
    """

    def __init__(self, form: type[Any], name: str) -> None:
        self._form, self._name = form, name
        self._records: dict[str, T] = {}
        self._dirty: dict[str, None] = {}  # in the order of the changes

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> T | None:
        """Return the record of a key, or None."""
        return self._records.get(key)

    def put(self, key: str, record: T) -> T:
        """Set the record of a key and return it."""
        self._records[key] = record
        self._dirty[key] = None
        return record

    def items(self) -> ItemsView[str, T]:
        """Return all keys with their records."""
        return self._records.items()

    def touch(self, key: str) -> None:
        """Mark the record of a key as changed."""
        self._dirty[key] = None

    def delete(self, key: str) -> None:
        """Remove a record, here and with the next commit in the store.  Does nothing if the key is unknown."""
        if self._records.pop(key, None) is not None:
            self._dirty[key] = None

    def dirty_keys(self) -> tuple[str, ...]:
        """Return the keys whose record was set, changed or deleted since the last `mark_clean`."""
        return tuple(self._dirty)

    def mark_clean(self) -> None:
        """Note that all changes are committed."""
        self._dirty.clear()

    def snapshot(self, key: str) -> bytes | None:
        """Return the record of a key as bytes; None if there is none."""
        record = self._records.get(key)
        return None if record is None else self._dump(record)

    def restore(self, key: str, data: bytes) -> None:
        """Set the record that `snapshot` returned, even beyond a limit on the number of keys.  Raises StateError."""
        record = self._load(key, data)
        if record is not None:
            self._records[key] = record
            self._dirty.pop(key, None)

    def evict(self, key: str) -> None:
        """Drop a record from memory only; `restore` may bring it back.  Does nothing if the key is unknown."""
        self._records.pop(key, None)
        self._dirty.pop(key, None)

    def _dump(self, record: T) -> bytes:
        return encode(record)

    def _load(self, key: str, data: bytes) -> T | None:
        """Return the record of stored bytes; None when it is of no use here.  Raises StateError."""
        record: T = decode(data, self._form, f"{self._name}, {key}" if key else self._name)
        return record
