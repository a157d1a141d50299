"""Export: a bundle as a file of another tool.  One function a format, one row in `FORMATS`.

keras         Keras 3, whole sequences          tflite        LiteRT, float32, as it is in the bundle
h5            Keras' older HDF5 format          tflite-int8   LiteRT, 8-bit products, for a microcontroller
saved-model   TensorFlow                        onnx          ONNX
c             C source without a library

Engineering units in and out, everywhere.  Decision: nothing that is there is ever replaced; a folder that was named by
mistake would be lost.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stream_gru.core.errors import ConfigError
from stream_gru.model.optional_packages import require_extra, suppress_native_stderr

if TYPE_CHECKING:
    from stream_gru.config import Config
    from stream_gru.model.bundle import Bundle


@dataclass(frozen=True)
class Format:
    """How a format is made.

    ``function``  "module:function", called with a `Request`, returns `Contents`
    ``suffix``    what the default name ends with
    ``folder``    whether a folder is written rather than a file
    ``extra``     the extra of this package that it needs, if any
    ``load``      one line of code that loads it; ``{path}`` stands for the path, quoted
    """

    function: str
    suffix: str
    load: str
    folder: bool = False
    extra: str = ""


_PLAIN = "stream_gru.model.export.without_tensorflow"
_LOAD_KERAS = "keras.models.load_model({path})"
_LOAD_LITERT = "ai_edge_litert.interpreter.Interpreter({path}).get_signature_runner('step')"

FORMATS: dict[str, Format] = {
    "keras": Format(f"{_PLAIN}:keras_file", ".keras", _LOAD_KERAS, extra="train"),
    "h5": Format("stream_gru.model.keras.keras_files:h5_file", ".h5", _LOAD_KERAS, extra="train"),
    "tflite": Format(f"{_PLAIN}:tflite_file", ".tflite", _LOAD_LITERT),
    "tflite-int8": Format("stream_gru.training.int8_export:int8_files", ".int8.tflite", _LOAD_LITERT, extra="train"),
    "onnx": Format(f"{_PLAIN}:onnx_file", ".onnx", "onnxruntime.InferenceSession({path})", extra="onnx"),
    "saved-model": Format(
        "stream_gru.model.keras.saved_model:saved_model_files",
        ".saved_model",
        "tensorflow.saved_model.load({path}).signatures['step']",
        folder=True,
        extra="train",
    ),
    "c": Format(f"{_PLAIN}:c_folder", "_c", "cc -c {path}/*.c", folder=True),
}

# What is written.  A folder: path inside it -> bytes.  A file: what is appended to its name ("" itself) -> bytes.
Contents = dict[str, bytes]


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True)
class Request:
    """What an export is made from.

    ``config``: the training configuration, for formats that are calibrated on its recordings; ``config_name``: the file
    it was read from, to be named; ``force``: write even what loses more than its limit; ``say`` is told what was
    measured.
    """

    bundle: Bundle
    config: Config | None = None
    force: bool = False
    say: Callable[[str], None] = _silent
    config_name: str = ""


def default_path(bundle: Path, name: str) -> Path:
    """The bundle's name with the format's suffix, in the current folder; ``bundle`` gives way to its parent's."""
    whole = bundle.resolve()
    stem = (whole.parent.name if whole.name == "bundle" else whole.name.removesuffix(".bundle")) or "model"
    return Path(stem + FORMATS[name].suffix)


def check_out(out: Path) -> None:
    """Raise ConfigError when something is there already, or stands in the way."""
    for path in (out, *out.absolute().parents):
        if os.path.lexists(path):
            if path == out:
                raise ConfigError(f"{out}: is there already; remove it or name another with --out")
            if not path.is_dir():
                raise ConfigError(f"{out}: cannot be written: {path} is no folder")
            return


def check_suffix(out: Path, name: str) -> None:
    """Raise ConfigError where Keras, which goes by the end of a name, would take the file for another kind."""
    suffix = FORMATS[name].suffix
    if name in ("keras", "h5") and out.suffix != suffix:
        raise ConfigError(f"--out {out}: expected a name that ends in {suffix}, by which Keras knows the format")


def export(request: Request, name: str, out: Path) -> dict[Path, int]:
    """Write the bundle to ``out`` in the format ``name``; return what was written, each with its size in bytes.

    It appears whole or not at all.  Raises ConfigError (unknown format, something is there already, a package is
    missing), BundleError (the bundle lacks what it takes), ParityError (what came out computes something else).
    """
    if name not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    check_out(out)
    contents = _make(request, name)
    return _write_folder(out, contents) if FORMATS[name].folder else _write_files(out, contents)


def _make(request: Request, name: str) -> Contents:
    form = FORMATS[name]
    module, _, function = form.function.partition(":")
    with require_extra(f"format {name}", form.extra):
        with suppress_native_stderr():  # TensorFlow talks while it is imported
            make = getattr(importlib.import_module(module), function)
        contents: Contents = make(request)
    return contents


def _write_files(out: Path, contents: Contents) -> dict[Path, int]:
    """The file and what stands beside it; the file itself last, so that it is never without them."""
    targets = {out.with_name(out.name + ending): data for ending, data in sorted(contents.items(), reverse=True)}
    for path in targets:
        check_out(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        for path, data in targets.items():
            (Path(folder) / path.name).write_bytes(data)
        for path in targets:
            (Path(folder) / path.name).rename(path)
    return {path: len(data) for path, data in reversed(targets.items())}


def _write_folder(out: Path, contents: Contents) -> dict[Path, int]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        new = Path(folder) / "new"
        for name, data in contents.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        check_out(out)
        new.rename(out)
    return {out / name: len(data) for name, data in contents.items()}
