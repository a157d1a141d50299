"""Who may import whom, and what a gateway never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stream_gru

PACKAGE = Path(stream_gru.__file__).parent
HEAVY = ("keras", "tensorflow", "matplotlib", "onnx", "onnxruntime", "pyarrow", "rich")

# What each room may import of this package besides itself: the right-hand column of the design.
ALLOWED = {
    "errors": set(),
    "extras": {"errors"},
    "types": set(),
    "durable": set(),
    "syncing": set(),
    "protocols": {"types", "durable"},
    "memory": {"errors"},
    "times": {"types"},
    "config": {"errors", "mqtt"},
    "calendar": {"types", "config"},
    "manifest": {"config"},
    "contradictions": {"config", "manifest"},
    "bundle": {"errors", "manifest", "contradictions", "types"},
    "state": {"types", "errors"},
    "conditioning": {"types", "state", "config", "calendar"},
    "advance": {"types", "protocols", "conditioning"},
    "scoring": {"types", "state", "conditioning", "manifest"},
    "prediction": {"types", "times"},
    "engines": {"types", "protocols", "bundle", "manifest", "errors", "config", "training"},
    "stored_form": {"errors", "manifest", "state", "conditioning"},
    "pipeline": {
        "types", "stored_form", "bundle", "manifest", "conditioning", "advance", "scoring", "state", "engines",
        "prediction", "protocols", "times", "errors",
    },
    "decoders": {"types", "config", "manifest", "errors", "protocols", "times", "memory"},
    "secrets": {"errors"},
    "export": {"extras", "types", "errors", "calendar", "manifest", "bundle", "config", "engines", "training"},
    "mqtt": {"types", "durable", "errors", "config", "secrets"},
    "sources": {"types", "durable", "config", "errors", "protocols", "mqtt", "secrets"},
    "sinks": {
        "types", "durable", "config", "errors", "protocols", "prediction", "times", "manifest", "mqtt", "secrets",
        "memory", "syncing",
    },
    "recordings": {"types", "protocols", "decoders", "sources", "errors"},
    "recording_file": {"types", "decoders", "sources", "errors", "times"},
    "feedback": {"types", "manifest", "errors"},
    "generate": {"types", "manifest", "errors", "times", "feedback", "pipeline"},
    "metrics": {"types", "manifest", "scoring"},
    "pacing": {"types", "times"},
    "summary": {"types", "scoring"},
    "store": {"types", "durable", "syncing", "errors", "state", "protocols"},
    "intake": {"types", "errors", "protocols", "control", "memory"},
    "alarm": {"types", "config", "manifest", "errors"},
    "poison": {"types", "errors", "protocols", "times"},
    "silence": set(),
    "control": {"types", "config", "mqtt", "memory"},
    "web": {"errors", "types", "durable", "control", "sinks"},
    "notify": set(),
    "period_watch": {"types"},
    "simulate": set(),
}  # fmt: skip


def imports_of(path: Path) -> set[str]:
    """Full names of the modules a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def room_files(room: str) -> list[Path]:
    """The files of a room: a module or a folder."""
    return [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).glob("**/*.py"))


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_the_design_allows(room: str) -> None:
    """Dependencies between the rooms run one way, as the design draws them."""
    for path in room_files(room):
        rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("stream_gru.")}
        assert rooms <= ALLOWED[room] | {room}, path


def test_every_room_is_in_the_table() -> None:
    """A new room must say what it may import (the shells and the training room may import anything)."""
    shells = {"caretaker", "cli", "daemon", "evaluation", "gateway", "keeping", "recipes", "training"}
    rooms = {path.stem for path in PACKAGE.iterdir() if not path.stem.startswith("_") and path.suffix in ("", ".py")}
    assert rooms - shells - {"py"} <= set(ALLOWED)


def test_only_training_and_its_engine_name_keras() -> None:
    """No other room imports keras or tensorflow, not even inside a function."""
    for path in PACKAGE.glob("**/*.py"):
        if "training" in path.parts or path.name == "keras_engine.py":
            continue
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"keras", "tensorflow"}, path


RUNTIME = """
import sys
import stream_gru
from stream_gru.cli import COMMANDS
from stream_gru.cli.group import cli
from stream_gru.cli.building import build_pipeline
import stream_gru.gateway.gateway, stream_gru.sources.mqtt, stream_gru.sources.serial, stream_gru.sinks.mqtt
for name in COMMANDS:
    cli.get_command(None, name)
pipeline, _ = build_pipeline(stream_gru.load_bundle({bundle!r}), "auto", 0.9, "test")
pipeline.push("a", 0.0, [1.0] * len(pipeline.manifest.channels))
print(",".join(name for name in {heavy!r} if name in sys.modules))
"""


def test_the_runtime_loads_neither_keras_nor_tensorflow() -> None:
    """Importing the package, every command and running a model leaves the heavy packages alone."""
    bundle = PACKAGE.parent / "sample_data" / "pump.bundle"
    code = RUNTIME.format(bundle=str(bundle), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


SIZE_EXCEPTIONS: dict[str, str] = {}


def test_no_file_grows_past_400_lines() -> None:
    """A file past 400 lines wants to be two; exceptions have a reason."""
    long = {path.name for path in PACKAGE.glob("**/*.py") if len(path.read_text().splitlines()) > 400}
    assert long <= set(SIZE_EXCEPTIONS)
