"""`load_bundle` on changed bytes: a short BundleError, or a model whose numbers match its manifest."""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

from stream_gru.core.errors import BundleError
from stream_gru.model.bundle import (
    MANIFEST,
    TFLITE,
    WEIGHTS,
    Bundle,
    document_digest,
    load_bundle,
    write_bundle,
)
from stream_gru.model.manifest import FileEntry, Manifest, weight_shapes
from tests.support.models import make_bundle

_LONGEST_MESSAGE = 2000
_MEMBERS = ("recurrent_0/kernel", "scaling/scale", "forecast/bias", "embedding_3/embeddings")


class BundleTarget:
    """A valid bundle on disk in which one file after the other is changed and restored."""

    words = (
        b'"units":', b'"layers":[]', b'"channels":', b'"embeddings":', b'"files":', b'"bytes":', b'"scores":{}',
        b'"model.keras"', b'"../weights.npz"', b'"/etc/passwd"', b'"weights.npz"', b"PK\x03\x04", b"PK\x01\x02",
        b"PK\x05\x06", b"PK\x06\x06", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x03\x00", b"'<f4'",
        b"'>f4'", b"'|O'", b"'<f8'", b"'fortran_order': True", b"'shape': (1152921504606846976,)",
        b"'shape': (-1, 4)", b"(4294967296, 4294967296)", b"()", b"\xff\xff\xff\xff", b"\x08\x00", b"\x0c\x00",
    )  # fmt: skip

    def __enter__(self) -> Self:
        """Write the bundle."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "a.bundle"
            made = good_bundle()
            self._bundle: Bundle = write_bundle(folder, made.manifest, made.weights, {TFLITE: b"flatbuffer"})
            self._files = {name: (folder / name).read_bytes() for name in (MANIFEST, WEIGHTS, TFLITE)}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Delete it."""
        self._stack.close()

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """Each piece replaces a file, by its kind; ``variant`` says whether hashes are adjusted."""
        changed: set[str] = set()
        for number, piece in enumerate(pieces):
            kind, honest = _kind(piece), variant >> number & 1
            if kind == MANIFEST:
                self._put(MANIFEST, _with_digest(piece) if honest else piece)
            else:
                data = self._archive(piece, variant) if kind == "npy" else piece
                name = WEIGHTS if kind == "npy" else kind
                self._put(name, data)
                if honest:
                    self._put(MANIFEST, self._manifest_for(name, data))
                changed.add(name)
            changed.add(MANIFEST)
        try:
            return [self._load()]
        finally:
            for name in changed:
                self._put(name, self._files[name])

    def _load(self) -> str:
        try:
            loaded = load_bundle(self._bundle.path)
        except BundleError as error:
            _require_readable_message(str(error))
            return type(error).__name__
        for name, shape in weight_shapes(loaded.manifest).items():
            array = loaded.weights[name]
            assert array.shape == shape
            assert np.isfinite(array).all()
        return "loaded"

    def _put(self, name: str, data: bytes) -> None:
        (self._bundle.path / name).write_bytes(data)

    def _manifest_for(self, name: str, data: bytes) -> bytes:
        """The manifest of an attacker who can compute hashes."""
        entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        manifest = msgspec.structs.replace(
            self._bundle.manifest, files={**self._bundle.manifest.files, name: entry}, digest=""
        )
        return _with_digest(msgspec.json.encode(manifest))

    def _archive(self, piece: bytes, variant: int) -> bytes:
        """A valid archive with one invalid member."""
        wanted, buffer = _MEMBERS[(variant >> 8) % len(_MEMBERS)], io.BytesIO()
        method = zipfile.ZIP_DEFLATED if variant >> 16 & 7 == 0 else zipfile.ZIP_STORED
        with zipfile.ZipFile(io.BytesIO(self._files[WEIGHTS])) as old, zipfile.ZipFile(buffer, "w", method) as new:
            for name in old.namelist():
                new.writestr(name, piece if name == f"{wanted}.npy" else old.read(name))
        return buffer.getvalue()


def good_bundle() -> Bundle:
    """A small model that uses every part of a manifest."""
    return make_bundle(units=(3, 2), horizon=2, quantiles=(0.1, 0.5, 0.9), calendar=1, categories=(4,), embedding=2)


def _require_readable_message(message: str) -> None:
    assert len(message) < _LONGEST_MESSAGE, len(message)
    assert message.isprintable(), message


def _kind(piece: bytes) -> str:
    if piece.lstrip()[:1] == b"{":
        return MANIFEST
    if piece[:4] == b"flat":
        return TFLITE
    return "npy" if piece[:6] == b"\x93NUMPY" else WEIGHTS


def _with_digest(text: bytes) -> bytes:
    """The same manifest with a matching digest, where it is valid."""
    try:
        document = msgspec.to_builtins(msgspec.json.decode(text, type=Manifest))
        return msgspec.json.encode({**document, "digest": document_digest(document)})
    except Exception:
        return text
