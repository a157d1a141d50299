"""``stream-gru doctor``: check everything a daemon needs and advise on what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from stream_gru.cli.doctor_machine import check_clock, check_listen, check_memory
from stream_gru.cli.doctor_model import check_bundle, check_config, check_engines, check_plugin
from stream_gru.cli.doctor_state import check_state
from stream_gru.config import Config
from stream_gru.connectors.catalog import CATALOG
from stream_gru.connectors.folder_check import check_folder
from stream_gru.connectors.mqtt.broker_check import check_broker
from stream_gru.connectors.sources.serial_check import serial_ports
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import StreamGruError
from stream_gru.runtime.resolved_config import resolve_file
from stream_gru.runtime.wiring import commit_interval_s


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--bundle", type=click.Path(path_type=Path), help="Check this bundle, without a CONFIG.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(config: Path | None, bundle: Path | None, as_json: bool) -> int:
    """Check this machine and everything that CONFIG refers to.

    Checks files, serial ports, brokers, engines, disks, clock and memory.  Connects and reads, but changes nothing; a
    temporary file measures the speed of the disk.  The exit code is 1 when a check fails.
    """
    if config is not None and bundle is not None:
        raise click.UsageError("expected CONFIG or --bundle, not both")
    checks = list(_checks(config, bundle))
    failed = sum(check.state is State.FAIL for check in checks)
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [check.as_dict() for check in checks]}))
    else:
        for line in check_lines(checks):
            click.echo(line)
    return 1 if failed else 0


def _checks(path: Path | None, bundle: Path | None) -> Iterator[Check]:
    settings: Config | None = None
    if path is not None:
        settings, check = check_config(path)
        yield check
    if settings is not None and settings.run is not None:
        bundle = Path(settings.run.bundle)
    if bundle is not None:
        found, check = check_bundle(bundle)
        yield check
        if found is not None:
            wanted = settings.run.engine if settings is not None and settings.run is not None else "auto"
            yield from check_engines(found, wanted)
    if settings is None:
        yield serial_ports()
    else:
        yield from _outside(settings)
        if path is not None:
            yield from _state(path, settings)
    yield from map(check_plugin, CATALOG.plugins())
    yield check_clock()
    yield check_memory()


def _outside(settings: Config) -> Iterator[Check]:
    """Checks of the ports, brokers, folders and address that a configuration names."""
    for broker in settings.broker:
        yield from check_broker(broker)
    found = [check for part in (*settings.source, *settings.sink) for check in part.checks()]
    if settings.run is not None and settings.run.state_dir:
        found.append(check_folder(Path(settings.run.state_dir)))
    yield from {check.name: check for check in found}.values()
    if settings.metrics.enabled:
        yield check_listen(settings.metrics.listen)


def _state(path: Path, settings: Config) -> Iterator[Check]:
    """Checks of the state store and its disk."""
    if settings.run is None or not settings.run.state_dir:
        return
    try:
        seconds = commit_interval_s(resolve_file(path))
    except StreamGruError:  # reported by the check of the configuration
        seconds = settings.run.commit_interval_s
    yield from check_state(Path(settings.run.state_dir), seconds)


def check_lines(checks: Sequence[Check]) -> list[str]:
    """The checks as a table with advice below each row, and a line with the totals."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        for number, text in enumerate(check.found.splitlines() or [""]):
            lead = f"{check.state:<4}  {check.name:<{width}}  " if not number else " " * (8 + width)
            lines.append((lead + text).rstrip())
        lines += [f"{'':<{8 + width}}→ {text}" for text in check.advice.splitlines()]
    counts = [sum(check.state is state for check in checks) for state in State]
    return [*lines, "", "{} ok, {} warnings, {} failed".format(*counts)]
