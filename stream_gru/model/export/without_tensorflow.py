"""Exports that need no TensorFlow: what the bundle holds already, and what is written from its weights alone."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from stream_gru.core.errors import BundleError
from stream_gru.model.bundle import KERAS, TFLITE
from stream_gru.model.optional_packages import suppress_native_stderr

if TYPE_CHECKING:
    from stream_gru.model.export.formats import Contents, Request


def keras_file(request: Request) -> Contents:
    """The bundle's own ``model.keras`` where its hash is right, else the same network built from the weights."""
    bundle = request.bundle
    entry = bundle.manifest.files.get(KERAS)
    path = bundle.path / KERAS
    if entry is not None and path.is_file():
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() == entry.sha256:
            return {"": data}
        request.say(f"{path}: SHA-256 differs from the manifest; the network is built from the weights instead")
    with suppress_native_stderr():
        from stream_gru.model.keras.keras_files import keras_file as rebuilt
    return rebuilt(request)


def tflite_file(request: Request) -> Contents:
    """The bundle's flatbuffer as it is.  Raises BundleError where it has none."""
    bundle = request.bundle
    if bundle.tflite is None:
        raise BundleError(f"{bundle.path}: expected {TFLITE}, found none; train the bundle again")
    return {"": bundle.tflite}


def onnx_file(request: Request) -> Contents:
    """The step as an ONNX graph."""
    from stream_gru.model.engines.onnx_graph import onnx_model

    return {"": onnx_model(request.bundle.manifest, request.bundle.weights)}


def c_folder(request: Request) -> Contents:
    """The step as C source."""
    from stream_gru.model.export.c_source import c_files

    bundle = request.bundle
    return c_files(bundle.manifest, bundle.weights, bundle.tflite)
