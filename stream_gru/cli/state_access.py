"""Who has the states of a daemon: this process, where the daemon is stopped, or the daemon that runs.

    held_state(config) ─┬─ the lock is free ─▶ StoppedState: the store is read and written here
                        └─ it is taken ──────▶ RunningState: the daemon is asked over HTTP

A store has one holder only, so there is no third way.
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

from stream_gru.cli.control import commander_of
from stream_gru.cli.remote import remote_of, told
from stream_gru.config import Config, RunConfig, load_config
from stream_gru.core.errors import ConfigError, StateError, StoreLocked, StreamGruError
from stream_gru.core.timestamps import format_iso
from stream_gru.pipeline.row_schema import StoredForm
from stream_gru.pipeline.state_table import split_row
from stream_gru.runtime.checkpoint.state_export import (
    Exported,
    decoded,
    encoded,
    exported_from,
    require_same_model,
    reset_row,
)
from stream_gru.runtime.checkpoint.store import Changes, Store, StoredRow
from stream_gru.runtime.control.commands import Action

_OK = 200
_MOST_ROWS = 99_999  # what the daemon shows at once


@dataclass(frozen=True, slots=True)
class StreamRow:
    """A stream as it is listed: event time of its last sample (ISO 8601), steps since its reset; None: not known."""

    stream: str
    time: str | None
    steps: int | None
    status: str


class StateHolder(Protocol):
    """What can be asked of whoever has the states.

    All of it raises StateError for what cannot be done with these streams, and StreamGruError, StoreError when the
    holder cannot be asked.
    """

    def rows(self) -> list[StreamRow]:
        """All streams, by name; damaged ones too."""
        ...

    def names(self) -> list[str]:
        """Their names alone, sorted."""
        ...

    def export(self, stream: str) -> Exported:
        """One stream, to be looked at or taken elsewhere."""
        ...

    def take_in(self, states: Sequence[Exported], *, replace: bool) -> list[str]:
        """Have these streams go on here; return what is to be said of them.  ``replace``: also those that are here."""
        ...

    def reset(self, stream: str | None) -> str:
        """Reset one stream, or all, before the next sample; return what was done."""
        ...

    def forget(self, stream: str) -> str:
        """Delete all that is known of a stream; return what was done."""
        ...

    def forget_position(self, source: str) -> str:
        """Have a source begin at its beginning; return what was done."""
        ...


@contextmanager
def held_state(config: Path, *, make: bool = False) -> Iterator[StateHolder]:
    """Whoever has the states of a configuration; ``make``: there may be no store yet.

    Raises ConfigError without a state_dir, StateError where there is no store, StoreError when it is damaged.
    """
    settings = load_config(config)
    run = settings.run
    if run is None or not run.state_dir:
        raise ConfigError(f"{config}: run.state_dir: expected the folder that holds the state, got none")
    if "$" in run.state_dir:
        raise ConfigError(
            f"{config}: run.state_dir: a variable in {run.state_dir} is not set here; "
            "set it: STATE_DIRECTORY=... stream-gru state"
        )
    store = Store(Path(run.state_dir))
    if not make and not store.path.exists():
        raise StateError(f"{store.path}: there is no state yet: start the daemon once, or import streams")
    try:
        store.open(repair=False)  # that is the daemon's affair, which counts and tells it
    except StoreLocked as locked:
        yield RunningState(settings, config, locked)
        return
    try:
        yield StoppedState(run, store)
    finally:
        store.close()


class StoppedState:
    """The open store of a daemon that does not run."""

    def __init__(self, run: RunConfig, store: Store) -> None:
        self._run, self._store = run, store

    def rows(self) -> list[StreamRow]:
        """In one pass over the store."""
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
        """All streams."""
        return self._store.names()

    def export(self, stream: str) -> Exported:
        """As it was committed."""
        found = exported_from(self._store, stream)
        if found is None:
            raise self._unknown(stream)
        for part in sorted(self._store.memories(stream).keys() - found.memories.keys()):
            click.echo(f"stream-gru: stream {stream}: what {part} remembers is damaged and left out", err=True)
        return found

    def take_in(self, states: Sequence[Exported], *, replace: bool) -> list[str]:
        """One transaction for all of a form; an old row and all that was remembered of its name go with it."""
        if not states:
            return []
        form = self._form()
        for one in states:
            require_same_model(one, form)
        _require_new([one.stream for one in states], self.names(), replace=replace)
        by_form: dict[str, list[Exported]] = defaultdict(list)
        for one in states:
            by_form[one.form].append(one)
        self._write(
            Changes(
                form=text,
                forgotten=[one.stream for one in some],
                streams=[(one.stream, one.row) for one in some],
                memories=[(part, one.stream, data) for one in some for part, data in one.memories.items()],
            )
            for text, some in by_form.items()
        )
        return []

    def reset(self, stream: str | None) -> str:
        """One transaction for all rows of a form; a damaged one begins anew by itself."""
        by_form: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        damaged = 0
        for found in self._store.rows() if stream is None else [self._row(stream)]:
            if found.row is None:
                damaged += 1
            else:
                by_form[found.form].append((found.name, found.row))
        changes = []
        for text, rows in by_form.items():
            form = StoredForm.read(text)
            changes.append(Changes(form=text, streams=[(name, reset_row(form, row)) for name, row in rows]))
        self._write(changes)
        what = "all streams" if stream is None else f"stream {stream}"
        done = f"{what}: reset before the next sample ({sum(map(len, by_form.values()))})"
        return f"{done}; damaged, and begin anew by themselves: {damaged}" if damaged else done

    def forget(self, stream: str) -> str:
        """With what every part remembers of it."""
        self._row(stream)
        self._store.forget_streams([stream])
        return f"stream {stream}: forgotten"

    def forget_position(self, source: str) -> str:
        """The streams keep what they have seen."""
        known = self._store.positions()
        if source not in known:
            there = ", ".join(sorted(known)) or "none"
            raise StateError(f"source {source}: expected one that has a position ({there})")
        self._store.forget_position(source)
        return f"source {source}: begins at its beginning"

    def _row(self, stream: str) -> StoredRow:
        found = self._store.row(stream)
        if found is None:
            raise self._unknown(stream)
        return found

    def _unknown(self, stream: str) -> StateError:
        return StateError(f"{self._store.path}: unknown stream {stream!r}; `stream-gru state list` shows those it has")

    def _form(self) -> StoredForm:
        """Of the rows that the daemon will write."""
        from stream_gru.model.bundle import load_bundle
        from stream_gru.pipeline.pipeline import Pipeline

        return Pipeline(load_bundle(self._run.bundle), "numpy").form

    def _write(self, changes: Iterable[Changes]) -> None:
        """How the last run ended stays as it was: this is none."""
        for one in changes:
            self._store.write(one)
            self._store.end_well(self._store.ended_well)


class RunningState:
    """A daemon that runs, asked with its token.  ``locked``: how the store told that somebody has it."""

    def __init__(self, settings: Config, path: Path, locked: StoreLocked) -> None:
        try:
            self._remote = remote_of(settings, path)
            self._remote.ask("GET", "/-/healthy")
        except StreamGruError as error:  # who has it may be no daemon at all
            raise type(error)(f"{locked}\n{error}") from error
        self._commander = commander_of(settings, path)

    def rows(self) -> list[StreamRow]:
        """Those that are in memory as they are now; of those that made room the names."""
        status, text = self._remote.ask("GET", f"/api/v1/streams?limit={_MOST_ROWS}")
        rows = {row["stream"]: StreamRow(**row) for row in self._answer(status == _OK, text)}
        return [rows.get(name) or StreamRow(name, None, None, "stored") for name in sorted({*rows, *self.names()})]

    def names(self) -> list[str]:
        """In memory or not."""
        return [str(name) for name in json.loads(self._done(Action.LIST, {"all": True}, "state"))]

    def export(self, stream: str) -> Exported:
        """As it is between two batches."""
        return decoded(self._done(Action.EXPORT, {"stream": stream}, "state").encode())

    def take_in(self, states: Sequence[Exported], *, replace: bool) -> list[str]:
        """One after the other, each durable when the next one goes."""
        _require_new([one.stream for one in states], self.names(), replace=replace)
        said = []
        for count, one in enumerate(states):
            try:
                text = self._done(Action.IMPORT, json.loads(encoded(one)), query="?replace=1" if replace else "")
            except StateError as error:
                raise StateError(f"{error}\n{count} of {len(states)} streams were imported before") from error
            if text != f"stream {one.stream}: imported":
                said.append(text)
        return said

    def reset(self, stream: str | None) -> str:
        """Those too that are not in memory."""
        return self._done(Action.RESET, {"all": True} if stream is None else {"stream": stream})

    def forget(self, stream: str) -> str:
        """With what every part remembers of it."""
        return self._done(Action.FORGET, {"stream": stream})

    def forget_position(self, source: str) -> NoReturn:
        """Not while it is read."""
        raise StateError(f"source {source}: the daemon runs and reads it; stop it first")

    def _done(self, action: Action, body: dict[str, object], key: str = "text", query: str = "") -> str:
        """What the daemon answers under ``key`` when it has done it.  Raises StateError when it has not."""
        return str(self._answer(*self._commander.send(action, body, query))[key])

    def _answer(self, done: bool, text: str) -> Any:
        if not done:
            raise StateError(f"{self._remote}: {told(text)}")
        return json.loads(text)


def _clock(found: StoredRow) -> tuple[int, int | None]:
    """Event time of the last sample in ns, and steps since the reset.  Raises StateError when the row is damaged."""
    if found.row is None:
        raise StateError("its checksum is wrong")
    columns = split_row(StoredForm.read(found.form).columns, found.row)
    return int(columns["applied_ns"]), int(columns["steps"])


def _require_new(names: Sequence[str], there: Iterable[str], *, replace: bool) -> None:
    """Raises StateError when a stream is there already, and shall not be replaced."""
    known = sorted({*names} & {*there})
    if known and not replace:
        more = f" (and {len(known) - 1} more)" if len(known) > 1 else ""
        raise StateError(f"stream {known[0]}{more}: is there already; --replace puts the file's in its place")
