"""Export a bundle as a file of another tool.  One function per format, one row in `FORMATS`.

keras         Keras 3, whole sequences          tflite        LiteRT, float32, the file of the bundle
h5            Keras' older HDF5 format          tflite-int8   LiteRT, int8 products, for microcontrollers
saved-model   TensorFlow                        onnx          ONNX
c             C source without a library

Inputs and outputs are in engineering units in every format.
Decision: an export never replaces an existing file or folder; a mistyped path must not destroy anything.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stream_gru.core.errors import BundleError, ConfigError
from stream_gru.core.plugins import require_extra, suppress_native_stderr
from stream_gru.model.bundle import KERAS, TFLITE, Bundle

if TYPE_CHECKING:
    from stream_gru.config import Config


@dataclass(frozen=True)
class ExportFormat:
    """How a format is made.

    ``function``  "module:function", called with an `ExportRequest`, returns `ExportedFiles`
    ``suffix``    end of the default name
    ``load``      one line of code that loads the result; ``{path}`` stands for the quoted path
    ``folder``    whether a folder is written instead of a file
    ``extra``     the extra of this package that the format needs, if any
    """

    function: str
    suffix: str
    load: str
    folder: bool = False
    extra: str = ""


_LOAD_KERAS = "keras.models.load_model({path})"
_LOAD_LITERT = "ai_edge_litert.interpreter.Interpreter({path}).get_signature_runner('step')"

FORMATS: dict[str, ExportFormat] = {
    "keras": ExportFormat(f"{__name__}:keras_file", ".keras", _LOAD_KERAS, extra="train"),
    "h5": ExportFormat("stream_gru.model.keras.keras_files:h5_file", ".h5", _LOAD_KERAS, extra="train"),
    "tflite": ExportFormat(f"{__name__}:tflite_file", ".tflite", _LOAD_LITERT),
    "tflite-int8": ExportFormat(
        "stream_gru.training.int8_export:int8_files", ".int8.tflite", _LOAD_LITERT, extra="train"
    ),
    "onnx": ExportFormat(f"{__name__}:onnx_file", ".onnx", "onnxruntime.InferenceSession({path})", extra="onnx"),
    "saved-model": ExportFormat(
        "stream_gru.model.keras.keras_files:saved_model_files",
        ".saved_model",
        "tensorflow.saved_model.load({path}).signatures['step']",
        folder=True,
        extra="train",
    ),
    "c": ExportFormat(f"{__name__}:c_folder", "_c", "cc -c {path}/*.c", folder=True),
}

ExportedFiles = dict[str, bytes]
"""For a folder: path inside it -> bytes.  For a file: suffix appended to its name ("" for the file itself) -> bytes."""


def _ignore(_: str) -> None:
    pass


@dataclass(frozen=True)
class ExportRequest:
    """Input of an export.

    ``config``: training configuration, for formats that are calibrated on its recordings; ``force``: write even if the
    scores fall below the limit; ``report``: called with each line about what was measured; ``config_name``: the path of
    ``config``, for messages.
    """

    bundle: Bundle
    config: Config | None = None
    force: bool = False
    report: Callable[[str], None] = _ignore
    config_name: str = ""


def export(request: ExportRequest, name: str, out: Path) -> dict[Path, int]:
    """Write the bundle to ``out`` in the format ``name``; return each written path and its size in bytes.

    All is written or nothing.  Raises ConfigError (unknown format, ``out`` exists, a package is missing), BundleError
    (the bundle lacks what the format needs), ParityError (the result computes something else).
    """
    if name not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    require_new_path(out)
    files = _make(request, name)
    return _write_folder(out, files) if FORMATS[name].folder else _write_files(out, files)


def default_path(bundle: Path, name: str) -> Path:
    """Name of the bundle with the suffix of the format, in the current folder; for ``x/bundle`` the name is ``x``."""
    whole = bundle.resolve()
    stem = (whole.parent.name if whole.name == "bundle" else whole.name.removesuffix(".bundle")) or "model"
    return Path(stem + FORMATS[name].suffix)


def require_new_path(out: Path) -> None:
    """Raise ConfigError when ``out`` exists or a file stands where a parent folder must be."""
    for path in (out, *out.absolute().parents):
        if os.path.lexists(path):
            if path == out:
                raise ConfigError(f"{out}: already exists; remove it or choose another path with --out")
            if not path.is_dir():
                raise ConfigError(f"{out}: cannot be written: {path} is not a folder")
            return


def require_suffix(out: Path, name: str) -> None:
    """Raise ConfigError when Keras, which chooses the format by the suffix, would read ``out`` as another one."""
    suffix = FORMATS[name].suffix
    if name in ("keras", "h5") and out.suffix != suffix:
        raise ConfigError(f"--out {out}: expected a name that ends in {suffix}: Keras chooses the format by it")


def keras_file(request: ExportRequest) -> ExportedFiles:
    """The ``model.keras`` of the bundle if its SHA-256 is right, else the same network built from the weights."""
    bundle = request.bundle
    entry = bundle.manifest.files.get(KERAS)
    path = bundle.path / KERAS
    if entry is not None and path.is_file():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == entry.sha256:
            return {"": data}
        request.report(f"{path}: SHA-256 differs from the manifest; the network is built from the weights instead")
    with suppress_native_stderr():
        from stream_gru.model.keras.keras_files import keras_file as rebuilt
    return rebuilt(request)


def tflite_file(request: ExportRequest) -> ExportedFiles:
    """The flatbuffer of the bundle, unchanged.  Raises BundleError without one."""
    bundle = request.bundle
    if bundle.tflite is None:
        raise BundleError(f"{bundle.path}: expected {TFLITE}, found none; train the bundle again")
    return {"": bundle.tflite}


def onnx_file(request: ExportRequest) -> ExportedFiles:
    """The step as an ONNX graph.  Raises UnsupportedModelError."""
    from stream_gru.model.engines.onnx_engine import onnx_model

    return {"": onnx_model(request.bundle.manifest, request.bundle.weights)}


def c_folder(request: ExportRequest) -> ExportedFiles:
    """The step as C source."""
    from stream_gru.model.export.c_source import c_files

    bundle = request.bundle
    return c_files(bundle.manifest, bundle.weights, bundle.tflite)


def _make(request: ExportRequest, name: str) -> ExportedFiles:
    form = FORMATS[name]
    module, _, function = form.function.partition(":")
    with require_extra(f"format {name}", form.extra):
        with suppress_native_stderr():  # TensorFlow writes to stderr while it is imported
            make = getattr(importlib.import_module(module), function)
        files: ExportedFiles = make(request)
    return files


def _write_files(out: Path, files: ExportedFiles) -> dict[Path, int]:
    """Write the file and its companions; the file itself last, so that it never exists without them."""
    targets = {out.with_name(out.name + ending): data for ending, data in sorted(files.items(), reverse=True)}
    for path in targets:
        require_new_path(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        for path, data in targets.items():
            (Path(folder) / path.name).write_bytes(data)
        for path in targets:
            (Path(folder) / path.name).rename(path)
    return {path: len(data) for path, data in reversed(targets.items())}


def _write_folder(out: Path, files: ExportedFiles) -> dict[Path, int]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        new = Path(folder) / "new"
        for name, data in files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        require_new_path(out)
        new.rename(out)
    return {out / name: len(data) for name, data in files.items()}
