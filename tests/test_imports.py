"""Allowed imports between packages, and modules that a gateway never loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import BUNDLE, PACKAGE

HEAVY = ("keras", "tensorflow", "jinja2", "matplotlib", "onnx", "onnxruntime", "pyarrow", "rich")

# The packages, lowest first: each may import those that its row names and nothing else of stream_gru.
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "config": {"core"},
    "model": {"core", "config"},
    "pipeline": {"core", "config", "model"},
    "connectors": {"core", "config", "model"},
    "runtime": {"core", "config", "model", "pipeline", "connectors"},
    "training": {"core", "config", "model", "pipeline", "connectors"},
    "examples": {"core", "config", "model", "pipeline", "connectors", "training"},
    "cli": {"core", "config", "model", "pipeline", "connectors", "runtime", "training", "examples"},
}
# Where keras and tensorflow may be named: what training needs, never the runtime.
KERAS = ("training/", "model/keras/", "model/engines/keras_engine.py")


def imports_of(path: Path) -> set[str]:
    """Full names of the modules a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_the_design_allows(room: str) -> None:
    """No file of a package imports a package above it, wherever in the file the import is."""
    for path in sorted((PACKAGE / room).glob("**/*.py")):
        names = {name for name in imports_of(path) if name.startswith("stream_gru.")}
        assert {name.split(".")[1] for name in names} <= ROOMS[room] | {room}, path


def test_the_rooms_are_the_package() -> None:
    """Beside the packages are only the public API and the entry point, and no loose module."""
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert found == {*ROOMS, "__init__.py", "__main__.py", "py.typed"}


def test_init_files_hold_no_logic() -> None:
    """Below the top, an `__init__.py` holds at most a docstring and imports of names."""
    for path in PACKAGE.glob("*/**/__init__.py"):
        body = ast.parse(path.read_text()).body
        logic = [node for node in body if not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign)]
        assert not logic, path


def test_only_training_and_the_keras_network_name_keras() -> None:
    """No other file imports keras or tensorflow, not even inside a function."""
    for path in PACKAGE.glob("**/*.py"):
        if path.relative_to(PACKAGE).as_posix().startswith(KERAS):
            continue
        roots = {name.split(".")[0] for name in imports_of(path)}
        assert not roots & {"keras", "tensorflow"}, path


RUNTIME = """
import sys
import stream_gru
from stream_gru.cli.main import COMMANDS
from stream_gru.cli.group import cli
import stream_gru.runtime.app, stream_gru.connectors.sources.mqtt, stream_gru.connectors.sources.serial
import stream_gru.connectors.sinks.mqtt
for name in COMMANDS:
    cli.get_command(None, name)
pipeline = stream_gru.Pipeline(stream_gru.load_bundle({bundle!r}))
pipeline.push("a", 0.0, [1.0] * len(pipeline.manifest.channels))
print(",".join(name for name in {heavy!r} if name in sys.modules))
"""


def test_the_runtime_loads_neither_keras_nor_tensorflow() -> None:
    """Importing the package, every command and running a model load no heavy package."""
    code = RUNTIME.format(bundle=str(BUNDLE), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


SIZE_EXCEPTIONS: dict[str, str] = {}


def test_no_file_grows_past_400_lines() -> None:
    """A file past 400 lines should be split; exceptions have a reason."""
    long = {path.name for path in PACKAGE.glob("**/*.py") if len(path.read_text().splitlines()) > 400}
    assert long <= set(SIZE_EXCEPTIONS)
