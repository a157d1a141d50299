"""Checks of the configuration, the bundle and the engines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import numpy as np

from stream_gru.config import Config, load_config, require_running
from stream_gru.connectors.catalog import CATALOG
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import BundleError, ConfigError, StreamGruError
from stream_gru.core.plugins import Plugin
from stream_gru.model.bundle import Bundle, load_bundle, verify_files
from stream_gru.model.engines.registry import load_engine
from stream_gru.runtime.resolved_config import resolve_file

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
        microseconds = 1e6 * _step_s(bundle, name)
    except (ConfigError, BundleError) as error:
        state = State.FAIL if needed or name == "numpy" else State.WARN
        return Check(f"engine {name}", state, str(error), 'choose another engine: engine = "auto" in [run]')
    return Check(f"engine {name}", State.OK, f"{microseconds:.0f} µs per step")


def _step_s(bundle: Bundle, name: str) -> float:
    """Median seconds per step of one stream."""
    engine = load_engine(name, bundle)
    x, h = np.zeros((1, engine.input_size), np.float32), engine.initial_state(1)
    times: list[float] = []
    end = time.perf_counter() + _MEASURE_S
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        engine.step(x, h)
        times.append(time.perf_counter() - begin)
    return median(times)
