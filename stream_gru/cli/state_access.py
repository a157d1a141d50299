"""Access to the stream states of a daemon, in the store or over HTTP.

open_state(config) ─┬─ store unlocked ─▶ OfflineState: reads and writes the store
                    └─ store locked ───▶ OnlineState: sends commands to the running daemon
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import click
import numpy as np

from stream_gru.cli.control import command_client, remote_of, response_text
from stream_gru.config import Config, RunConfig, load_config
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError, StateError, StoreLocked, StreamGruError
from stream_gru.core.timestamps import format_iso
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.pipeline.state_table import split_row
from stream_gru.runtime.checkpoint.commit import Commit, StoredRow
from stream_gru.runtime.checkpoint.state_export import (
    StreamExport,
    export_from_json,
    export_from_store,
    export_to_json,
    require_same_model,
    reset_row,
)
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.control.commands import Action

_OK = 200
_MAX_ROWS = 99_999  # the limit of the HTTP API


@dataclass(frozen=True, slots=True)
class StreamRow:
    """A stream in the listing: event time of its last sample (ISO 8601) and steps since its reset, None if unknown.

    ``dropped, last_drop``: of a running daemon, see `StreamStatus`.
    """

    stream: str
    time: str | None
    steps: int | None
    status: str
    dropped: int = 0
    last_drop: str = ""


class StateAccess(Protocol):
    """Operations on the stream states of one daemon.

    Each raises StateError when a stream does not allow it, StoreError when the store cannot be used, and StreamGruError
    when the daemon cannot be reached.
    """

    def rows(self) -> list[StreamRow]:
        """All streams, damaged ones included, sorted by name."""
        ...

    def names(self) -> list[str]:
        """The sorted names of all streams."""
        ...

    def export(self, stream: str) -> StreamExport:
        """The state of one stream."""
        ...

    def import_streams(self, states: Sequence[StreamExport], *, replace: bool) -> list[str]:
        """Store exported streams; ``replace`` allows names that exist.  Returns warnings."""
        ...

    def reset(self, stream: str | None) -> str:
        """Reset one stream, or all, before the next sample.  Returns a report."""
        ...

    def forget(self, stream: str) -> str:
        """Delete everything stored about a stream.  Returns a report."""
        ...

    def reset_position(self, source: str) -> str:
        """Let a source start at its beginning.  Returns a report."""
        ...


@contextmanager
def open_state(config: Path, *, create: bool = False) -> Iterator[StateAccess]:
    """The states of the daemon of a configuration; ``create`` makes a new store where there is none.

    Raises ConfigError without a state_dir, StateError without a store, StoreError when the store is damaged.
    """
    settings = load_config(config, CATALOG)
    run = settings.run
    if run is None or not run.state_dir:
        raise ConfigError(f"{config}: run.state_dir: expected the folder of the stored states, got none")
    if "$" in run.state_dir:
        raise ConfigError(
            f"{config}: run.state_dir: expected set environment variables, got {run.state_dir}; "
            "set them, such as: STATE_DIRECTORY=/var/lib/stream-gru stream-gru state ..."
        )
    store = Store(Path(run.state_dir))
    if not create and not store.path.exists():
        raise StateError(f"{store.path}: no such store; start the daemon once, or import streams")
    try:
        store.open(repair=False)  # only the daemon repairs, since it counts and logs repairs
    except StoreLocked as locked:
        yield OnlineState(settings, config, locked)
        return
    try:
        yield OfflineState(run, store)
    finally:
        store.close()


class OfflineState:
    """The states in the open store of a stopped daemon."""

    def __init__(self, run: RunConfig, store: Store) -> None:
        self._run, self._store = run, store

    def rows(self) -> list[StreamRow]:
        """All streams, read in one pass over the store."""
        rows, clocks = [], []
        for found in self._store.rows():
            try:
                clocks.append(_clock(found))
            except StateError:
                clocks.append((0, None))
            rows.append(found.name)
        times = format_iso(np.maximum([time for time, _ in clocks], 0).astype(np.int64))
        return sorted(
            (
                StreamRow(name, text if time > 0 else None, steps, "damaged" if steps is None else "stored")
                for name, text, (time, steps) in zip(rows, times, clocks, strict=True)
            ),
            key=lambda row: row.stream,
        )

    def names(self) -> list[str]:
        """The sorted names of all streams."""
        return self._store.names()

    def export(self, stream: str) -> StreamExport:
        """The state of one stream at the last commit; damaged parts are reported on standard error."""
        found = export_from_store(self._store, stream)
        if found is None:
            raise self._unknown(stream)
        for part in sorted(self._store.states_of_stream(stream).keys() - found.components.keys()):
            click.echo(f"stream-gru: stream {stream}: the state of {part} is damaged and not exported", err=True)
        return found

    def import_streams(self, states: Sequence[StreamExport], *, replace: bool) -> list[str]:
        """Write all streams of a row schema in one transaction; it deletes the rows and parts they replace."""
        if not states:
            return []
        form = self._form()
        for one in states:
            require_same_model(one, form)
        _require_new([one.stream for one in states], self.names(), replace=replace)
        by_form: dict[str, list[StreamExport]] = defaultdict(list)
        for one in states:
            by_form[one.row_schema].append(one)
        self._write(
            Commit(
                schema=text,
                deleted_streams=[one.stream for one in some],
                streams=[(one.stream, one.row) for one in some],
                component_states=[(part, one.stream, data) for one in some for part, data in one.components.items()],
            )
            for text, some in by_form.items()
        )
        return []

    def reset(self, stream: str | None) -> str:
        """Mark all rows of a row schema in one transaction; damaged rows are reset by the next sample anyway."""
        by_form: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        damaged = 0
        for found in self._store.rows() if stream is None else [self._row(stream)]:
            if found.row is None:
                damaged += 1
            else:
                by_form[found.schema].append((found.name, found.row))
        changes = []
        for text, rows in by_form.items():
            form = RowSchema.read(text)
            changes.append(Commit(schema=text, streams=[(name, reset_row(form, row)) for name, row in rows]))
        self._write(changes)
        what = "all streams" if stream is None else f"stream {stream}"
        done = f"{what}: reset before the next sample ({sum(map(len, by_form.values()))})"
        return f"{done}; damaged, reset by their next sample: {damaged}" if damaged else done

    def forget(self, stream: str) -> str:
        """Delete the row of a stream and the states of all parts."""
        self._row(stream)
        self._store.delete_streams([stream])
        return f"stream {stream}: forgotten"

    def reset_position(self, source: str) -> str:
        """Delete the position of a source; the streams keep their states."""
        known = self._store.positions()
        if source not in known:
            names = ", ".join(sorted(known)) or "none"
            raise StateError(f"source {source}: expected a source with a stored position ({names})")
        self._store.delete_position(source)
        return f"source {source}: starts at its beginning"

    def _row(self, stream: str) -> StoredRow:
        found = self._store.row(stream)
        if found is None:
            raise self._unknown(stream)
        return found

    def _unknown(self, stream: str) -> StateError:
        return StateError(
            f"{self._store.path}: unknown stream {stream!r}; list the streams with `stream-gru state list`"
        )

    def _form(self) -> RowSchema:
        """The row schema that the daemon writes."""
        from stream_gru.model.bundle import load_bundle
        from stream_gru.pipeline.pipeline import Pipeline

        return Pipeline(load_bundle(self._run.bundle), "numpy").row_schema

    def _write(self, changes: Iterable[Commit]) -> None:
        """Write changes without altering the clean-shutdown mark of the last run."""
        for one in changes:
            self._store.write(one)
            self._store.mark_clean_shutdown(self._store.clean_shutdown)


class OnlineState:
    """The states of a running daemon, over HTTP; ``locked`` is the error of opening its store."""

    def __init__(self, settings: Config, path: Path, locked: StoreLocked) -> None:
        try:
            self._remote = remote_of(settings, path)
            self._remote.request("GET", "/-/healthy")
        except StreamGruError as error:  # the process that holds the lock may be no daemon
            raise type(error)(f"{locked}\n{error}") from error
        self._client = command_client(settings, path)

    def rows(self) -> list[StreamRow]:
        """The current values of streams in memory, and the names of evicted streams."""
        status, text = self._remote.request("GET", f"/api/v1/streams?limit={_MAX_ROWS}")
        rows = {row["stream"]: StreamRow(**row) for row in self._decode(status == _OK, text)}
        return [rows.get(name) or StreamRow(name, None, None, "stored") for name in sorted({*rows, *self.names()})]

    def names(self) -> list[str]:
        """The sorted names of all streams, evicted ones included."""
        return [str(name) for name in json.loads(self._send(Action.LIST, {"all": True}, "state"))]

    def export(self, stream: str) -> StreamExport:
        """The state of one stream between two batches."""
        return export_from_json(self._send(Action.EXPORT, {"stream": stream}, "state").encode())

    def import_streams(self, states: Sequence[StreamExport], *, replace: bool) -> list[str]:
        """Import one stream after the other; each is durable before the next one is sent."""
        _require_new([one.stream for one in states], self.names(), replace=replace)
        warnings = []
        for count, one in enumerate(states):
            try:
                text = self._send(Action.IMPORT, json.loads(export_to_json(one)), query="?replace=1" if replace else "")
            except StateError as error:
                raise StateError(
                    f"{error}\n{count} of {len(states)} streams were imported before this error"
                ) from error
            if text != f"stream {one.stream}: imported":
                warnings.append(text)
        return warnings

    def reset(self, stream: str | None) -> str:
        """Reset one stream, or all, evicted streams included."""
        return self._send(Action.RESET, {"all": True} if stream is None else {"stream": stream})

    def forget(self, stream: str) -> str:
        """Delete a stream and the states of all parts."""
        return self._send(Action.FORGET, {"stream": stream})

    def reset_position(self, source: str) -> NoReturn:
        """Raise StateError, since the daemon reads the source."""
        raise StateError(f"source {source}: the daemon is running and reads this source; stop the daemon first")

    def _send(self, action: Action, body: dict[str, object], key: str = "text", query: str = "") -> str:
        """Send a command and return the field ``key`` of the response.  Raises StateError when the command fails."""
        return str(self._decode(*self._client.send(action, body, query))[key])

    def _decode(self, succeeded: bool, text: str) -> Any:
        if not succeeded:
            raise StateError(f"{self._remote}: {response_text(text)}")
        return json.loads(text)


def _clock(found: StoredRow) -> tuple[int, int | None]:
    """Event time of the last sample in ns, and steps since the reset.  Raises StateError when the row is damaged."""
    if found.row is None:
        raise StateError("wrong checksum")
    columns = split_row(RowSchema.read(found.schema).columns, found.row)
    return int(columns["applied_ns"]), int(columns["steps_since_reset"])


def _require_new(names: Sequence[str], existing: Iterable[str], *, replace: bool) -> None:
    """Raise StateError when a stream exists already and ``replace`` is not set."""
    known = sorted({*names} & {*existing})
    if known and not replace:
        more = f" (and {len(known) - 1} more)" if len(known) > 1 else ""
        raise StateError(f"stream {known[0]}{more}: exists already; replace it with --replace")
