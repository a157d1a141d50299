"""``stream-gru state``: stored stream states, of a running or a stopped daemon."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import click

from stream_gru.cli.group import CommandGroup
from stream_gru.cli.state_access import StateAccess, open_state
from stream_gru.core.errors import StateError, StreamGruError
from stream_gru.runtime.checkpoint.state_export import StreamExport, describe, export_from_json, export_to_json
from stream_gru.runtime.control.commands import MAX_STATE_BYTES

_CONFIG = click.argument("config", type=click.Path(path_type=Path))
_STREAM = click.option("--stream", metavar="NAME", help="Select this stream.")
_THIS_STREAM = click.option("--stream", metavar="NAME", required=True, help="Select this stream.")
_ALL = click.option("--all", "everything", is_flag=True, help="Select all streams.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=CommandGroup)
def state() -> None:
    """List, export, import, reset or delete stored stream states.

    CONFIG is the configuration of the daemon, which may run or be stopped.
    """


@state.command("list")
@_CONFIG
@_JSON
def list_command(config: Path, as_json: bool) -> None:
    """List the streams with last event time and steps since reset."""
    with open_state(config) as access:
        rows = access.rows()
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return
    width = max((len(row.stream) for row in rows), default=6)
    click.echo(f"{'stream':{width}}  {'last sample':30}  {'steps':>10}  status")
    for row in rows:
        steps = "-" if row.steps is None else row.steps
        dropped = f", {row.dropped:,} dropped, the last one as {row.last_drop}" if row.dropped else ""
        click.echo(f"{row.stream:{width}}  {row.time or '-':30}  {steps:>10}  {row.status}{dropped}")


@state.command()
@_CONFIG
@_THIS_STREAM
@_JSON
def show(config: Path, stream: str, as_json: bool) -> None:
    """Show the times, last values and hidden state of one stream."""
    with open_state(config) as access:
        facts = describe(access.export(stream))
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
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file.  [default: standard output]")
def export(config: Path, stream: str | None, everything: bool, out: Path | None) -> int:
    """Export one stream, or all, as JSON lines.

    With --all, damaged streams are skipped and named, and the exit code is 1.
    """
    if (stream is not None) == everything:
        raise click.UsageError("expected one of --stream NAME and --all")
    with open_state(config) as access:
        states, skipped = ([access.export(stream)], 0) if stream is not None else _export_all(access)
    data = b"".join(export_to_json(one) + b"\n" for one in states)
    if out is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        try:
            _write(out, data)
        except OSError as error:
            raise StreamGruError(f"{out}: cannot be written: {error.strerror}") from error
        click.echo(f"{out}: {len(states)} streams exported", err=True)
    return 1 if skipped else 0


def _export_all(access: StateAccess) -> tuple[list[StreamExport], int]:
    """All intact streams, and the number of damaged ones, which are reported on standard error."""
    states, skipped = [], 0
    for name in access.names():
        try:
            states.append(access.export(name))
        except StateError as error:
            click.echo(f"stream-gru: not exported: {error}", err=True)
            skipped += 1
    return states, skipped


@state.command("import")
@_CONFIG
@click.argument("file", type=click.File("rb"))
@click.option("--replace", is_flag=True, help="Replace streams that exist already.")
def import_command(config: Path, file: BinaryIO, replace: bool) -> None:
    """Import streams from a FILE of `state export`.

    They continue with their exported state.  The model must be the same.
    """
    states = _read(file)
    with open_state(config, create=True) as access:
        warnings = access.import_streams(states, replace=replace)
    for text in warnings:
        click.echo(text, err=True)
    click.echo(f"{len(states)} streams imported", err=True)


def _read(file: BinaryIO) -> Sequence[StreamExport]:
    """Read the streams of an export.  Raises StateError with file and line."""
    states: dict[str, StreamExport] = {}
    number = 0
    while line := file.readline(MAX_STATE_BYTES + 1):
        number += 1
        if not line.strip():
            continue
        try:
            one = export_from_json(line.strip())
        except StateError as error:
            raise StateError(f"{file.name}:{number}: {error}") from error
        if one.stream in states:
            raise StateError(f"{file.name}:{number}: stream {one.stream}: expected each stream once, got it again")
        states[one.stream] = one
    return list(states.values())


@state.command()
@_CONFIG
@_STREAM
@_ALL
@click.option("--source", metavar="NAME", help="Forget the position of this source; it starts at the beginning.")
def reset(config: Path, stream: str | None, everything: bool, source: str | None) -> None:
    """Reset one stream, all streams, or the position of a source.

    A stream is reset before its next sample.
    """
    if (stream is not None) + everything + (source is not None) != 1:
        raise click.UsageError("expected one of --stream NAME, --all and --source NAME")
    with open_state(config) as access:
        click.echo(access.reset(stream) if source is None else access.reset_position(source))


@state.command()
@_CONFIG
@_THIS_STREAM
def forget(config: Path, stream: str) -> None:
    """Delete everything stored about a stream.

    Its next sample is the first of a new stream.
    """
    with open_state(config) as access:
        click.echo(access.forget(stream))


def _write(path: Path, data: bytes) -> None:
    """Write a file; only the owner may read a new one."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
