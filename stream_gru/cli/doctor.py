"""``stream-gru doctor``: check everything a daemon needs and advise on what is missing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import click
import numpy as np

from stream_gru.cli.control import remote_at
from stream_gru.cli.doctor_state import check_state
from stream_gru.config import Config, load_config, require_running
from stream_gru.connectors.folders import check_folder
from stream_gru.connectors.mqtt.broker_check import check_broker
from stream_gru.connectors.registry import CATALOG
from stream_gru.connectors.sources.serial import serial_ports
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import BundleError, ConfigError, ParityError, StreamGruError
from stream_gru.core.plugins import Plugin
from stream_gru.core.protocols import Engine, ReportsExactness
from stream_gru.model.bundle import Bundle, load_bundle, verify_files
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.parity import check_on_this_machine
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


_MIB = 1_048_576
_MEMORY_WARN_BYTES, _MEMORY_FAIL_BYTES = 256 * _MIB, 64 * _MIB
# 2025-01-01; an earlier time means that the clock was never set.
_CLOCK_SET_S = 1_735_689_600
_COMMAND_S = 5.0
_OK = 200


def check_clock(now_s: float | None = None) -> Check:
    """Check that the clock was set and is synchronized."""
    now_s = time.time() if now_s is None else now_s
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
    advice = "sudo timedatectl set-ntp true"
    if now_s < _CLOCK_SET_S:
        return Check("clock", State.FAIL, f"{text}: the clock was never set", advice)
    synchronized = _synchronized()
    if synchronized is None:
        return Check("clock", State.OK, f"{text}; synchronization unknown")
    if not synchronized:
        return Check("clock", State.WARN, f"{text}; not synchronized", advice)
    return Check("clock", State.OK, f"{text}; synchronized")


def _synchronized() -> bool | None:
    """Whether systemd reports a synchronized clock; None without systemd."""
    command = shutil.which("timedatectl")
    if command is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            [command, "show", "-p", "NTPSynchronized", "--value"],
            capture_output=True, text=True, check=False, timeout=_COMMAND_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def check_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Check:
    """Check the available memory, and the limit of the container or service."""
    available = [n for n in (_available(proc), _within_limit(cgroup)) if n is not None]
    if not available:
        return Check("memory", State.OK, "unknown")
    found = f"{min(available) / _MIB:,.0f} MiB available"
    if min(available) < _MEMORY_FAIL_BYTES:
        return Check("memory", State.FAIL, found, "stop other programs, or raise the memory limit")
    if min(available) < _MEMORY_WARN_BYTES:
        return Check("memory", State.WARN, found, "a daemon needs 60 to 150 MiB")
    return Check("memory", State.OK, found)


def _available(proc: Path) -> int | None:
    try:
        lines = proc.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _within_limit(cgroup: Path) -> int | None:
    try:
        return int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # "max": no limit
        return None


def check_listen(listen: str) -> Check:
    """Check that the HTTP address is free, or used by a healthy daemon."""
    name = f"endpoints {listen}"
    remote = remote_at(f"http://{listen}")
    family = socket.AF_INET6 if ":" in remote.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((remote.host, remote.port))
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return Check(name, State.OK, "free")
    try:
        status, text = remote.request("GET", "/-/healthy")
    except StreamGruError:
        return Check(name, State.FAIL, reason, "choose another address: listen in [metrics]")
    if status == _OK and text == "healthy":
        return Check(name, State.OK, "in use by a healthy daemon")
    return Check(
        name,
        State.FAIL,
        f"{reason}; the program there answers {text!r:.80}",
        "choose another address, or stop that program",
    )


_MEASURE_S = 0.1
_CONFIGURATION = "configuration"


def check_config(path: Path) -> tuple[Config | None, Check]:
    """Load and resolve a configuration.  Returns it, None if it is not readable, and the result."""
    settings = None
    try:
        settings = load_config(path, CATALOG)
        require_running(settings, str(path))
        resolve_file(path)
    except BundleError:
        return settings, Check(_CONFIGURATION, State.OK, f"{path}; keys that depend on the bundle were not checked")
    except StreamGruError as error:
        return settings, Check(_CONFIGURATION, State.FAIL, str(error), "correct the file; see `stream-gru config run`")
    return settings, Check(_CONFIGURATION, State.OK, str(path))


def check_plugin(plugin: Plugin) -> Check:
    """Check that a plugin loads, and that it has a name of its own."""
    name = f"plugin {plugin.kind} {plugin.name}"
    if plugin.shadowed:
        found = f"{plugin.origin}: ignored, as {plugin.name!r} is built in"
        return Check(name, State.WARN, found, f"rename the entry point, or: pip uninstall {plugin.distribution}")
    try:
        CATALOG.try_plugin(plugin)
    except ConfigError as error:
        advice = f"install another version of {plugin.distribution}, or: pip uninstall {plugin.distribution}"
        return Check(name, State.WARN, str(error), advice)
    return Check(name, State.OK, f"{plugin.origin}: {plugin.target}")


def check_bundle(path: Path) -> tuple[Bundle | None, Check]:
    """Load a bundle and verify the hashes of its files."""
    try:
        bundle = load_bundle(path)
        verify_files(bundle)
    except BundleError as error:
        return None, Check(
            "bundle", State.FAIL, str(error), "copy the bundle again, or train it with `stream-gru train`"
        )
    manifest = bundle.manifest
    return bundle, Check(
        "bundle", State.OK, f"{path}: model {manifest.model_id}, {len(manifest.channels)} channels, files verified"
    )


def check_engines(bundle: Bundle, wanted: str) -> Iterator[Check]:
    """Load the engines and measure a step; only the ``wanted`` one and numpy must load."""
    names = dict.fromkeys(("litert", "numpy", wanted))
    names.pop("auto", None)
    for name in names:
        needed = wanted == name
        if name == "litert" and not needed and (bundle.tflite is None or find_spec("ai_edge_litert") is None):
            reason = "the bundle has no model.tflite" if bundle.tflite is None else "not installed"
            yield Check(f"engine {name}", State.WARN, f"{reason}; numpy is used instead", "pip install ai-edge-litert")
            continue
        yield _engine(bundle, name, needed=needed)


def _engine(bundle: Bundle, name: str, *, needed: bool) -> Check:
    try:
        engine = load_engine(name, bundle)
        found = [f"{1e6 * _step_s(engine):.0f} µs per step"]
        if isinstance(engine, ReportsExactness):
            parity = check_on_this_machine(bundle)
            found += [engine.exactness, f"differs from numpy by at most {parity.max_difference:.1g}"]
    except (ConfigError, BundleError) as error:
        state = State.FAIL if needed or name == "numpy" else State.WARN
        return Check(f"engine {name}", state, str(error), 'choose another engine: engine = "auto" in [run]')
    except ParityError as error:
        return Check(f"engine {name}", State.FAIL, str(error), 'set engine = "numpy" in [run]')
    return Check(f"engine {name}", State.OK, "; ".join(found))


def _step_s(engine: Engine) -> float:
    """Median seconds per step of one stream."""
    x, h = np.zeros((1, engine.input_size), np.float32), engine.initial_state(1)
    times: list[float] = []
    end = time.perf_counter() + _MEASURE_S
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        engine.step(x, h)
        times.append(time.perf_counter() - begin)
    return median(times)
