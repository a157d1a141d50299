"""What a commit makes durable, its form in the log, and the commits that are only in the log so far.

    Commit ─▶ encode ─▶ one row of the log          small: written at each commit
           ╰▶ Changes.add ─▶ the tables             one page for each stream: written once for many commits

A stream's row changes in every commit, but not much of it.  The log has the exclusive or of each row and the one before
it, as byte planes (byte k of all rows together) under zlib: a fifth of the rows, where the tables need a page for each.

Decision: the log is a table of the same database, so a transaction covers it and the tables alike; a log of our own
would need its own rules for syncs and torn writes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np

from stream_gru.core.commit_records import FileOffset, OutboxRow, ProcessedPackets
from stream_gru.core.keyed_state import encode
from stream_gru.core.types import U8, Position

_LEVEL = 1  # of zlib; higher ones gain 4 % and take three times as long
_MIN_LOG_BYTES, _MAX_LOG_BYTES = 2**18, 2**24
_LOG_PER_ROW_BYTE = 8
_MAX_ROW_BYTES = 2**22  # of the rows in the log, which are in memory too; with more the tables are written


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit makes durable.

    ``deleted_streams``       streams of which everything is deleted, before anything is written
    ``schema``                row schema of ``streams``, opaque to the store
    ``streams``               (name, row) of each changed stream
    ``discarded_components``  components of which all states are deleted, before new ones are written
    ``component_states``      (component, key, bytes); None for the bytes deletes the state
    ``positions``             by source
    ``processed_packets``     by source
    ``file_offsets``          by sink
    ``unacked``, ``acked``    by sink: new outputs in the outbox, and numbers of outputs to delete from it
    ``numbers``               single values by name
    ``texts``                 single values by name that alone are no reason for a commit
    """

    deleted_streams: Sequence[str] = ()
    schema: str = ""
    streams: Collection[tuple[str, bytes]] = ()
    discarded_components: Sequence[str] = ()
    component_states: Sequence[tuple[str, str, bytes | None]] = ()
    positions: Mapping[str, Position] = field(default_factory=dict)
    processed_packets: Mapping[str, ProcessedPackets] = field(default_factory=dict)
    file_offsets: Mapping[str, FileOffset] = field(default_factory=dict)
    unacked: Mapping[str, Sequence[OutboxRow]] = field(default_factory=dict)
    acked: Mapping[str, Sequence[int]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any((
            self.deleted_streams, self.streams, self.discarded_components, self.component_states, self.positions,
            self.processed_packets, self.file_offsets, self.unacked, self.acked, self.numbers,
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A committed stream: ``row`` is None when its checksum is wrong, ``commit_no`` counts commits."""

    name: str
    schema: str
    row: bytes | None
    commit_no: int


class ChangedRow(NamedTuple):
    """A stream in the log; ``commit_no`` counts commits."""

    schema: str
    commit_no: int
    row: bytes


class Changes:
    """The commits of the log, merged: what the tables lack.

    ``values``: (kind, name) -> encoded value.  ``packets`` is complete: all that are known of each source.
    """

    def __init__(self, packets: dict[str, dict[int, bytes]] | None = None) -> None:
        self.deleted_streams: set[str] = set()
        self.rows: dict[str, ChangedRow] = {}  # in the order of their commits
        self.discarded_components: set[str] = set()
        self.component_states: dict[tuple[str, str], bytes | None] = {}
        self.values: dict[tuple[str, str], bytes] = {}
        self.outputs: dict[tuple[str, int], OutboxRow] = {}
        self.acked: list[tuple[str, int]] = []  # of outputs in the table
        self.packets: dict[str, dict[int, bytes]] = packets or {}
        self._changed_packets: set[str] = set()
        self._keys: set[str] = set()  # of component states
        self._row_bytes = self._log_bytes = self._commits = 0

    def __bool__(self) -> bool:
        return self._commits > 0

    def concerns(self, stream: str) -> bool:
        """Whether the tables may lack something of a stream."""
        known = stream in self.rows or stream in self._keys or stream in self.deleted_streams
        return known or bool(self.discarded_components)

    def encoded(self, commit: Commit) -> tuple[Commit, bytes] | None:
        """Return the next commit, with its rows read, and its bytes for the log.

        None when it and the log before it belong in the tables.
        """
        rows: list[tuple[str, bytes]] = []
        row_bytes = self._row_bytes
        for name, row in commit.streams:
            row_bytes += len(row)
            if row_bytes > _MAX_ROW_BYTES:
                return None
            rows.append((name, row))
        commit = replace(commit, streams=rows)
        data = _encode(commit, self.rows)
        most = min(_MAX_LOG_BYTES, max(_MIN_LOG_BYTES, _LOG_PER_ROW_BYTE * row_bytes))
        return (commit, data) if self._log_bytes + len(data) <= most else None

    def add_encoded(self, data: bytes, commit_no: int) -> None:
        """Add a commit of the log.  Raises ValueError when it cannot be read."""
        try:
            self.add(_decode(data, self.rows), commit_no, len(data))
        except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error

    def add(self, commit: Commit, commit_no: int, log_bytes: int = 0) -> None:
        """Add a commit, which takes ``log_bytes`` in the log."""
        self._commits += 1
        self._log_bytes += log_bytes
        for name in commit.deleted_streams:
            self._delete(name)
        for name, row in commit.streams:
            self._drop_row(name)
            self.rows[name] = ChangedRow(commit.schema, commit_no, row)
            self._row_bytes += len(row)
        if commit.discarded_components:
            gone = set(commit.discarded_components)
            self.discarded_components |= gone
            self.component_states = {at: data for at, data in self.component_states.items() if at[0] not in gone}
        for component, key, state in commit.component_states:
            self.component_states[component, key] = state
            self._keys.add(key)
        self._add_values(commit)
        self._add_outputs(commit)
        for source, processed in commit.processed_packets.items():
            self._add_packets(source, processed)

    def all_values(self) -> Iterator[tuple[str, str, bytes]]:
        """Yield all changed values: kind, name and bytes."""
        for (kind, name), data in self.values.items():
            yield kind, name, data
        for source in self._changed_packets:
            yield "packets", source, encode(list(self.packets[source].items()))

    def _delete(self, name: str) -> None:
        self.deleted_streams.add(name)
        self._drop_row(name)
        if name in self._keys:
            self.component_states = {at: data for at, data in self.component_states.items() if at[1] != name}

    def _drop_row(self, name: str) -> None:
        gone = self.rows.pop(name, None)
        if gone is not None:
            self._row_bytes -= len(gone.row)

    def _add_values(self, commit: Commit) -> None:
        kinds: dict[str, Mapping[str, object]] = {
            "meta": {**commit.numbers, **commit.texts},
            "position": {source: _stored(at) for source, at in commit.positions.items()},
            "file_offset": commit.file_offsets,
            "output": {sink: max(row.number for row in rows) for sink, rows in commit.unacked.items() if rows},
        }
        for kind, values in kinds.items():
            for name, value in values.items():
                self.values[kind, name] = encode(value)

    def _add_outputs(self, commit: Commit) -> None:
        for sink, numbers in commit.acked.items():
            self.acked += [(sink, number) for number in numbers if self.outputs.pop((sink, number), None) is None]
        for sink, rows in commit.unacked.items():
            self.outputs.update({(sink, row.number): row for row in rows})

    def _add_packets(self, source: str, processed: ProcessedPackets) -> None:
        self._changed_packets.add(source)
        known = {} if processed.new_session else self.packets.get(source, {})
        for identifier, digest in processed.packets.items():
            known.pop(identifier, None)  # the latest use of an identifier comes last
            known[identifier] = digest
        for identifier in list(islice(known, max(0, len(known) - processed.limit))):
            del known[identifier]
        self.packets[source] = known


# ---- the form of a commit in the log ------------------------------------------------------------------------------

_Logged = tuple[Commit, list[int], bytes]  # without its rows; their lengths, and their planes


def _encode(commit: Commit, before: Mapping[str, ChangedRow]) -> bytes:
    names, rows = [name for name, _ in commit.streams], [row for _, row in commit.streams]
    lengths = [len(row) for row in rows]
    planes = _matrix(rows, lengths) ^ _before(names, lengths, before)
    positions = {source: _stored(at) for source, at in commit.positions.items()}
    rest = replace(commit, streams=[(name, b"") for name in names], positions=positions)
    return zlib.compress(msgspec.msgpack.encode((rest, lengths, planes.T.tobytes())), _LEVEL)


def _decode(data: bytes, before: Mapping[str, ChangedRow]) -> Commit:
    commit, lengths, planes = msgspec.msgpack.decode(zlib.decompress(data), type=_Logged)
    names = [name for name, _ in commit.streams]
    if len(lengths) != len(names) or len(planes) != len(names) * max(lengths, default=0):
        raise ValueError(f"expected rows of {len(names)} streams, got {len(planes)} bytes of {len(lengths)}")
    width = max(lengths, default=0)
    rows = np.frombuffer(planes, np.uint8).reshape(width, len(names)).T ^ _before(names, lengths, before)
    streams = [(name, row[:length].tobytes()) for name, row, length in zip(names, rows, lengths, strict=True)]
    positions = {source: position_of(at) for source, at in commit.positions.items()}
    return replace(commit, streams=streams, positions=positions)


def _before(names: Sequence[str], lengths: Sequence[int], rows: Mapping[str, ChangedRow]) -> U8:
    """The rows in the log of these streams as a `_matrix`, zeros for streams without one."""
    found = (rows.get(name) for name in names)
    return _matrix([b"" if one is None else one.row for one in found], lengths)


def _matrix(rows: Sequence[bytes], lengths: Sequence[int]) -> U8:
    """Rows as (n, longest length) uint8, cut off or followed by zeros."""
    width = max(lengths, default=0)
    data = b"".join(row[:width].ljust(width, b"\0") for row in rows)
    return np.frombuffer(data, np.uint8).reshape(len(rows), width)


def _stored(position: Position) -> Position:
    """A position whose name is text: file names are bytes, which need not be."""
    return replace(position, name=os.fsencode(position.name).decode("latin-1"))


def position_of(stored: Position) -> Position:
    """The position that was stored."""
    return replace(stored, name=os.fsdecode(stored.name.encode("latin-1")))
