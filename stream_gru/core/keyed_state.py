"""What parts of the road remember of names, and its form as bytes: msgpack, the same memory always the same bytes.

A part that keeps one record for each stream has `KeyedState` as its ``memory``; one that keeps more
takes the functions.
"""

from __future__ import annotations

from typing import Annotated, Generic, TypeVar

import msgspec

from stream_gru.core.errors import StateError

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

T = TypeVar("T")


def encode(memory: object) -> bytes:
    """The bytes of a record, or of plain values."""
    return msgspec.msgpack.encode(memory)


def decode(data: bytes, form: type[T], what: str) -> T:
    """Read what `encode` gave, ``what`` says of whom.  Raises StateError for anything that is not of this form.

    Lists of a form need a longest length: a few bytes may announce one that fills the memory.
    """
    try:
        return msgspec.msgpack.decode(data, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise corrupt_state(what, str(error)) from error


def corrupt_state(what: str, why: str) -> StateError:
    """The error of stored bytes that cannot be used."""
    return StateError(f"what is stored of {what} cannot be used: {why}; move the state directory away to begin afresh")


class DirtySet:
    """Names of which something else is remembered than was stored, in the order in which they changed."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def names(self) -> tuple[str, ...]:
        """All that have changed."""
        return tuple(self._names)

    def add(self, name: str) -> None:
        """Note one that has changed."""
        self._names[name] = None

    def drop(self, name: str) -> None:
        """Note one that is as it was stored, or not ours any more."""
        self._names.pop(name, None)

    def clear(self) -> None:
        """All was stored."""
        self._names.clear()


class KeyedState(Generic[T]):
    """One record of each name, all of the one ``form``, a msgspec Struct; fulfils `Stateful`.

    A record may be changed in place; whoever does so says `touch`.  ``what`` names the part in errors.
    """

    def __init__(self, form: type[T], what: str) -> None:
        self._form, self._what = form, what
        self._records: dict[str, T] = {}
        self._changes = DirtySet()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, name: str) -> T | None:
        """The record of a name; None where there is none."""
        return self._records.get(name)

    def put(self, name: str, record: T) -> T:
        """Begin a record, in place of an old one, and return it."""
        self._records[name] = record
        self._changes.add(name)
        return record

    def touch(self, name: str) -> None:
        """The record of this name was changed."""
        self._changes.add(name)

    def dirty_keys(self) -> tuple[str, ...]:
        """Names whose record was begun or touched since the last `mark_clean`."""
        return self._changes.names()

    def mark_clean(self) -> None:
        """What has changed was written down."""
        self._changes.clear()

    def snapshot(self, name: str) -> bytes | None:
        """The record of a name as bytes; None where there is none."""
        record = self._records.get(name)
        return None if record is None else encode(record)

    def restore(self, name: str, data: bytes) -> None:
        """Remember what `snapshot` gave, however many there are already.  Raises StateError."""
        self._records[name] = decode(data, self._form, f"{name} in {self._what}")
        self._changes.drop(name)

    def evict(self, name: str) -> None:
        """Let go of a name, also of what has changed of it; quiet when it is unknown."""
        self._records.pop(name, None)
        self._changes.drop(name)
