"""``stream-gru state``: what a daemon remembers of its streams, while it runs or while it does not.

A stopped daemon's store is read and written here; one that runs is asked over HTTP, as the store has one holder only.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from stream_gru.cli.control import send
from stream_gru.cli.remote import Remote, remote_of, told
from stream_gru.config import Config, load_config
from stream_gru.control import MAX_STATE_BYTES, Action
from stream_gru.errors import ConfigError, StateError, StoreLocked, StreamGruError

_CONFIG = click.argument("config", type=click.Path(path_type=Path))
_STREAM = click.option("--stream", metavar="NAME", help="This stream.")
_ALL = click.option("--all", "everything", is_flag=True, help="All streams.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_OK = 200


@click.group()
def state() -> None:
    """Look at, move and reset what a daemon remembers of its streams; CONFIG is the daemon's file."""


@state.command("list")
@_CONFIG
@_JSON
def list_command(config: Path, as_json: bool) -> None:
    """List the streams: event time of the last sample, steps since the last reset."""
    with _holder(config) as holder:
        rows = holder.rows()
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max((len(row["stream"]) for row in rows), default=6)
    click.echo(f"{'stream':{width}}  {'last sample':30}  {'steps':>10}  status")
    for row in rows:
        click.echo(f"{row['stream']:{width}}  {row['time'] or '-':30}  {row['steps']:>10}  {row['status']}")


@state.command()
@_CONFIG
@click.option("--stream", metavar="NAME", required=True, help="This stream.")
@_JSON
def show(config: Path, stream: str, as_json: bool) -> None:
    """Show one stream: its clock, its hidden state in figures, its last values."""
    from stream_gru.keeping.transfer import as_dict, decoded

    with _holder(config) as holder:
        facts = as_dict(decoded(holder.export(stream)))
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name:20} {shown}")


@state.command()
@_CONFIG
@_STREAM
@_ALL
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file; standard output else.")
def export(config: Path, stream: str | None, everything: bool, out: Path | None) -> None:
    """Write one stream, or all, a line of JSON each: to keep it, or to take it to another gateway."""
    _one_of(stream is not None, everything, "--stream NAME and --all")
    with _holder(config) as holder:
        names = [stream] if stream is not None else [row["stream"] for row in holder.rows()]
        lines = [holder.export(name) + b"\n" for name in names]
    if out is None:
        sys.stdout.buffer.write(b"".join(lines))
        sys.stdout.buffer.flush()
        return
    try:
        _write(out, b"".join(lines))
    except OSError as error:
        raise StreamGruError(f"{out}: cannot be written: {error.strerror}") from error
    click.echo(f"{out}: {len(lines)} streams", err=True)


@state.command("import")
@_CONFIG
@click.argument("file", type=click.File("rb"))
@click.option("--replace", is_flag=True, help="Also streams that are there already.")
def import_command(config: Path, file: Any, replace: bool) -> None:
    """Have the streams in FILE, which `export` wrote, go on here; the model must be the same."""
    from stream_gru.keeping.transfer import decoded

    states = []
    while line := file.readline(MAX_STATE_BYTES + 1):
        if line.strip():
            states.append(decoded(line.strip()))
    with _holder(config, make=True) as holder:
        there = {row["stream"] for row in holder.rows()}
        known = sorted(one.stream for one in states if one.stream in there)
        if known and not replace:
            raise StateError(f"stream {known[0]}: is there already; --replace puts the file's in its place")
        for one in states:
            holder.take_in(one)
    click.echo(f"{len(states)} streams imported", err=True)


@state.command()
@_CONFIG
@_STREAM
@_ALL
@click.option("--input", "source", metavar="NAME", help="Have this source begin at its beginning.")
def reset(config: Path, stream: str | None, everything: bool, source: str | None) -> None:
    """Reset one stream, or all, before the next sample; or where a source stands."""
    if (stream is not None) + everything + (source is not None) != 1:
        raise click.UsageError("expected one of --stream NAME, --all and --input NAME")
    with _holder(config) as holder:
        if source is not None:
            holder.forget_position(source)
            click.echo(f"source {source}: begins at its beginning")
        else:
            click.echo(holder.reset(stream))


class _Stopped:
    """The store of a daemon that does not run."""

    def __init__(self, settings: Config, path: Path) -> None:
        from stream_gru.store.store import Store

        self._settings, self._path = settings, path
        assert settings.run is not None  # noqa: S101 - the caller has looked
        self.store = Store(Path(settings.run.state_dir))

    def rows(self) -> list[dict[str, Any]]:
        from stream_gru.keeping.transfer import as_dict, exported_from

        rows = []
        for name in self.store.names():
            try:
                found = exported_from(self.store, name)
            except StateError:
                rows.append({"stream": name, "time": None, "steps": 0, "status": "damaged"})
                continue
            facts = as_dict(found) if found is not None else {}
            steps = facts.get("steps_since_reset", 0)
            rows.append({"stream": name, "time": facts.get("time"), "steps": steps, "status": "stored"})
        return rows

    def export(self, stream: str) -> bytes:
        from stream_gru.keeping.transfer import encoded, exported_from

        found = exported_from(self.store, stream)
        if found is None:
            raise StateError(f"unknown stream {stream!r}")
        return encoded(found)

    def take_in(self, one: Any) -> None:
        from stream_gru.bundle import load_bundle
        from stream_gru.keeping.transfer import require_same_model
        from stream_gru.pipeline import Pipeline
        from stream_gru.store.store import Changes

        assert self._settings.run is not None  # noqa: S101 - the caller has looked
        require_same_model(one, Pipeline(load_bundle(self._settings.run.bundle), "numpy").form)
        self.store.forget_stream(one.stream)
        memories = [(part, one.stream, data) for part, data in one.memories.items()]
        self.store.write(Changes(form=one.form, streams=[(one.stream, one.row)], memories=memories))

    def reset(self, stream: str | None) -> str:
        from stream_gru.keeping.transfer import reset_row
        from stream_gru.store.store import Changes
        from stream_gru.stored_form import StoredForm

        names = self.store.names() if stream is None else [stream]
        for name in names:
            found = self.store.row(name)
            if found is None:
                raise StateError(f"unknown stream {name!r}")
            if found.row is None:  # begins anew by itself
                continue
            row = reset_row(StoredForm.read(found.form), found.row)
            self.store.write(Changes(form=found.form, streams=[(name, row)]))
        what = "all streams" if stream is None else f"stream {stream}"
        return f"{what}: reset before the next sample ({len(names)})"

    def forget_position(self, source: str) -> None:
        known = self.store.positions()
        if source not in known:
            there = ", ".join(sorted(known)) or "none"
            raise StateError(f"source {source}: expected one that has a position ({there})")
        self.store.forget_position(source)


class _Running:
    """A daemon that runs."""

    def __init__(self, settings: Config, path: Path) -> None:
        self._path = path
        self._remote: Remote = remote_of(settings, path)

    def rows(self) -> list[dict[str, Any]]:
        status, text = self._remote.ask("GET", "/api/v1/streams?limit=99999")
        if status != _OK:
            raise StreamGruError(f"{self._remote}: {told(text)}")
        rows: list[dict[str, Any]] = json.loads(text)
        return sorted(rows, key=lambda row: str(row["stream"]))

    def export(self, stream: str) -> bytes:
        done, text = send(self._path, Action.EXPORT, {"stream": stream})
        if not done:
            raise StreamGruError(told(text))
        return str(json.loads(text)["state"]).encode()

    def take_in(self, one: Any) -> None:
        from stream_gru.keeping.transfer import encoded

        done, text = send(self._path, Action.IMPORT, json.loads(encoded(one)))
        if not done:
            raise StreamGruError(told(text))

    def reset(self, stream: str | None) -> str:
        done, text = send(self._path, Action.RESET, {"all": True} if stream is None else {"stream": stream})
        if not done:
            raise StreamGruError(told(text))
        return told(text)

    def forget_position(self, source: str) -> NoReturn:
        raise StreamGruError(f"source {source}: the daemon runs and reads it; stop it first")


@contextmanager
def _holder(config: Path, *, make: bool = False) -> Iterator[_Stopped | _Running]:
    """Whoever has the store: this process, or the daemon that runs; ``make``: there may be none yet.

    Raises ConfigError without a state_dir, StateError where there is no store.
    """
    settings = load_config(config)
    if settings.run is None or not settings.run.state_dir:
        raise ConfigError(f"{config}: run.state_dir: expected the folder that holds the state, got none")
    stopped = _Stopped(settings, config)
    if not make and not stopped.store.path.exists():
        raise StateError(f"{stopped.store.path}: there is no state yet: start the daemon once")
    try:
        stopped.store.open()
    except StoreLocked:
        yield _Running(settings, config)
        return
    try:
        yield stopped
        stopped.store.end_well(stopped.store.ended_well)
    finally:
        stopped.store.close()


def _one_of(first: bool, second: bool, words: str) -> None:
    if first == second:
        raise click.UsageError(f"expected one of {words}")


def _write(path: Path, data: bytes) -> None:
    """Write a file that only its owner reads."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
