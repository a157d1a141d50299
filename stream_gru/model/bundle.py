"""The bundle: the folder of a trained model.  Training writes it; everything else reads it, without keras or pickle.

    bundle/
      manifest.json   `stream_gru.model.manifest.Manifest`; SHA-256 and size of every other file
      weights.npz     plain float32 arrays named <layer>/<weight>
      model.tflite    signatures `step` and `scan`
      model.keras     for retraining; never read at run time
      report.html     training report (optional)

Loading checks sizes before reading, SHA-256 before parsing, names and shapes before use.

Weights (dtype float32; C channels, I = C + calendar inputs, U units of a layer, its input width W):
    scaling/mean, scaling/scale     (C,)        scaled = (value - mean) / scale; 0 and 1 for categories
    embedding_<c>/embeddings        (N, E)      of channel c with N categories; absent if one-hot
    recurrent_<i>/kernel            (W, G*U)    G = 3 gru (z, r, h), 4 lstm (i, f, c, o), 1 simple_rnn
    recurrent_<i>/recurrent_kernel  (U, G*U)
    recurrent_<i>/bias              (2, 3*U) gru with reset_after, else (G*U,); absent without use_bias
    forecast/kernel, forecast/bias  (U, D*H*Q), (D*H*Q,)   reshaped to (D, H, Q), still in scaled units
    classes/kernel, classes/bias    (U, L), (L,)           L = 1 with the activation logistic
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import stat
import tempfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from stream_gru.core.errors import BundleError, UnsupportedModelError
from stream_gru.core.types import F32
from stream_gru.model.manifest import (
    FileEntry,
    Manifest,
    manifest_problems,
    weight_shapes,
)

FORMAT_VERSION = 2
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_READ_BYTES = 64 * 1024 * 1024
"""Limit for all files that the runtime reads together, and for all unpacked arrays together."""
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MANIFEST = "manifest.json"
WEIGHTS = "weights.npz"
TFLITE = "model.tflite"
KERAS = "model.keras"
REPORT = "report.html"
_KNOWN_FILES = frozenset({WEIGHTS, TFLITE, KERAS, REPORT})
_READ = frozenset({WEIGHTS, TFLITE})
# Upper bound for the headers of one array in .npz and .npy.
_HEADER_BYTES = 4096
_MAX_PRINTED_CHARS = 500
RANDOM_SAMPLES = 256
_SPREAD = 3.0  # random channels lie within this many scales of the mean


class _Head(Struct):
    """The one key that every format version has."""

    format_version: int


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: manifest, weights by name and, if present, the LiteRT flatbuffer."""

    path: Path
    manifest: Manifest
    weights: dict[str, F32]
    tflite: bytes | None

    def with_manifest(self, **changes: object) -> Bundle:
        """The same bundle with changed keys in its manifest, in memory only."""
        return replace(self, manifest=msgspec.structs.replace(self.manifest, **changes))


def model_id(manifest: Manifest, weights: dict[str, F32]) -> str:
    """Identify what a model computes: 12 hexadecimal digits of SHA-256 over its weights and the keys that matter.

    Two models with the same id give the same outputs, so their hidden states are interchangeable.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weights[name], np.float32).tobytes())
    contract: dict[str, object] = {
        "layers": manifest.layers,
        "forecast": manifest.forecast,
        "classes": manifest.classes,
        "channels": [channel.name for channel in manifest.channels],
        "calendar": manifest.calendar,
        "regime": manifest.regime,
        "window": manifest.window,
        "period_s": manifest.period_s,
    }
    if manifest.categorical:
        contract["categories"] = [channel.categories for channel in manifest.channels]
        contract["embeddings"] = manifest.embeddings
    digest.update(msgspec.json.encode(contract, order="sorted"))
    return digest.hexdigest()[:12]


def random_samples(manifest: Manifest, weights: dict[str, F32], seed: int = 0) -> F32:
    """Draw `RANDOM_SAMPLES` rows of inputs around the training mean, calendar inputs in -1..1; (T, I)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (RANDOM_SAMPLES, manifest.input_size))
    channels = len(manifest.channels)
    x[:, :channels] = x[:, :channels] * _SPREAD * weights["scaling/scale"] + weights["scaling/mean"]
    for part in manifest.categorical:
        x[:, part.index] = rng.integers(0, part.categories, len(x))
    return x.astype(np.float32)


def document_digest(document: dict[str, object]) -> str:
    """SHA-256 over all other keys of a manifest, so that a changed limit or calibration is detected.

    It is computed from the document as written: keys that are newer than the bundle do not affect it.
    """
    return hashlib.sha256(msgspec.json.encode({**document, "digest": ""}, order="sorted")).hexdigest()


def check_target(path: Path) -> None:
    """Raise BundleError when `write_bundle` cannot write: ``path`` is not a bundle, or its folder is not writable."""
    if not path.name or (
        path.exists() and any(path.iterdir() if path.is_dir() else [path]) and not (path / MANIFEST).exists()
    ):
        raise BundleError(f"{path}: expected a new path or an older bundle to replace, found something else")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise BundleError(f"{path}: cannot be written: {parent} is not a writable folder")


def write_bundle(path: Path, manifest: Manifest, weights: dict[str, F32], extra: dict[str, bytes]) -> Bundle:
    """Write a bundle atomically and load it again, so that the files on disk are verified.

    ``extra``: bytes of the other files by name.  An older bundle at ``path`` is replaced.  Raises BundleError as
    `check_target` does, and for a file that would be too large to be read.
    """
    check_target(path)
    contents = {WEIGHTS: _pack_weights(weights), **extra}
    for name, data in contents.items():
        if len(data) > MAX_FILE_BYTES:
            raise BundleError(f"{path}: {name} would have {len(data):,} bytes, at most {MAX_FILE_BYTES:,} are allowed")
    entries = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        for name, data in sorted(contents.items())
    }
    # Normalise to what a reader gets: an integer in a float key becomes a float, which changes the digests.
    manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    manifest = msgspec.structs.replace(manifest, model_id=model_id(manifest, weights), files=entries)
    manifest = msgspec.structs.replace(manifest, digest=document_digest(msgspec.to_builtins(manifest)))
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(
            f"{path}: {MANIFEST} would have {len(text):,} bytes, at most {MAX_MANIFEST_BYTES:,} are allowed;"
            " fewer labels, horizons or streams in the scores make it smaller"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        new = Path(folder) / "new"
        new.mkdir()
        for name, data in contents.items():
            (new / name).write_bytes(data)
        (new / MANIFEST).write_bytes(text)
        load_bundle(new)
        if path.exists():
            path.rename(Path(folder) / "old")
        new.rename(path)
    return load_bundle(path)


def load_bundle(path: Path | str) -> Bundle:
    """Read and verify a bundle.

    Raises BundleError (missing, damaged, truncated, too large), UnsupportedModelError (another format version, an
    unknown layer, key or file).  Only the manifest is parsed before its hash is compared.
    """
    path = Path(path)
    if not path.is_dir():
        raise BundleError(f"{path}: expected a bundle folder, found {'a file' if path.exists() else 'nothing'}")
    manifest = _read_manifest(path / MANIFEST)
    _check_contract(path, manifest)
    contents = {name: _read_checked(path / name, entry) for name, entry in manifest.files.items() if name in _READ}
    weights = _unpack_weights(path / WEIGHTS, contents[WEIGHTS], weight_shapes(manifest))
    found = model_id(manifest, weights)
    if found != manifest.model_id:
        raise BundleError(
            f"{path / MANIFEST}: model_id: expected {found} for these weights and this contract,"
            f" got {_safe(manifest.model_id)!r}; the manifest was changed"
        )
    return Bundle(path=path, manifest=manifest, weights=weights, tflite=contents.get(TFLITE))


def verify_files(bundle: Bundle) -> None:
    """Compare the hashes of all files, including those that the runtime does not read.  Raises BundleError."""
    for name, entry in bundle.manifest.files.items():
        _read_checked(bundle.path / name, entry)


def _read_manifest(path: Path) -> Manifest:
    text = _read_bounded(path, MAX_MANIFEST_BYTES)
    try:
        head = msgspec.json.decode(text, type=_Head)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a manifest: {_safe(error)}") from error
    if head.format_version != FORMAT_VERSION:
        raise UnsupportedModelError(
            f"{path}: format_version: this version of stream-gru reads {FORMAT_VERSION}, got {head.format_version};"
            " install a matching stream-gru or train the bundle again"
        )
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
        if manifest.digest != document_digest(msgspec.json.decode(text)):
            raise BundleError(
                f"{path}: digest: expected the SHA-256 of the other keys, got another value; the manifest was changed"
            )
        return manifest
    except msgspec.ValidationError as error:
        raise UnsupportedModelError(f"{path}: not supported by this version of stream-gru: {_safe(error)}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a manifest: {_safe(error)}") from error


def _safe(what: object) -> str:
    """Untrusted text for a message: shortened, and without control characters."""
    text = str(what)
    text = text if len(text) <= _MAX_PRINTED_CHARS else f"{text[:_MAX_PRINTED_CHARS]}…"
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def _check_contract(path: Path, manifest: Manifest) -> None:
    """Check the rules of the manifest and the declared sizes before any array is read.  Raises BundleError."""
    unknown = sorted(set(manifest.files) - _KNOWN_FILES)
    if unknown:
        raise UnsupportedModelError(f"{path / MANIFEST}: files: unknown file {_safe(unknown[0])!r}")
    if WEIGHTS not in manifest.files:
        raise BundleError(f"{path / MANIFEST}: files: expected an entry for {WEIGHTS}, got none")
    for problem in manifest_problems(manifest):
        raise BundleError(f"{path / MANIFEST}: {_safe(problem)}")
    for size, what in (
        (sum(entry.bytes for name, entry in manifest.files.items() if name in _READ), "files to read"),
        (_declared_bytes(weight_shapes(manifest)), "arrays"),
    ):
        if size > MAX_READ_BYTES:
            raise BundleError(f"{path / MANIFEST}: expected {what} of at most {MAX_READ_BYTES:,} bytes, got {size:,}")


def _declared_bytes(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(4 * math.prod(shape) for shape in shapes.values())


def _read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes without following a link or blocking.  Raises BundleError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:  # noqa: PTH123 - a path would be resolved a second time
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{path}: expected a plain file, found something else")
            if status.st_size > limit:
                raise BundleError(f"{path}: expected at most {limit:,} bytes, got {status.st_size:,}")
            return file.read(limit + 1)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise BundleError(f"{path}: expected a plain file, found a link or a folder") from error
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error


def _read_checked(path: Path, entry: FileEntry) -> bytes:
    if not 0 <= entry.bytes <= MAX_FILE_BYTES:
        raise BundleError(f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, the manifest says {entry.bytes:,}")
    data = _read_bounded(path, MAX_FILE_BYTES)
    if len(data) != entry.bytes:
        raise BundleError(f"{path}: expected {entry.bytes:,} bytes, got {len(data):,}: truncated or changed")
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        raise BundleError(f"{path}: SHA-256 differs from the manifest: expected {_safe(entry.sha256)}, got {found}")
    return data


def _pack_weights(weights: dict[str, F32]) -> bytes:
    """Pack arrays as ``.npz`` bytes that depend on the arrays only (no timestamps, no compression)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(weights):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(weights[name], np.float32), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0)), member.getvalue())
    return buffer.getvalue()


def _unpack_weights(path: Path, data: bytes, shapes: dict[str, tuple[int, ...]]) -> dict[str, F32]:
    """Check names and declared sizes against ``shapes``, then read; every number must be finite."""
    limit = _declared_bytes(shapes) + _HEADER_BYTES * (len(shapes) + 1)
    if len(data) > limit:  # its list of members alone could fill the memory
        raise BundleError(f"{path}: expected at most {limit:,} bytes for the arrays of the layers, got {len(data):,}")
    weights: dict[str, F32] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if set(members) != set(shapes) or len(archive.infolist()) != len(shapes):
                different = f"{sorted(set(members) ^ set(shapes))[:5]}"
                raise BundleError(f"{path}: expected exactly the arrays of the layers; different: {_safe(different)}")
            for name, shape in shapes.items():
                _check_member(path, members[name], name, shape)
            for name, shape in shapes.items():
                weights[name] = _read_array(path, archive, members[name], name, shape)
    except BundleError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds for damaged archives
        raise BundleError(f"{path}: not a plain .npz of float32 arrays: {_safe(error)}") from error
    return weights


def _check_member(path: Path, member: zipfile.ZipInfo, name: str, shape: tuple[int, ...]) -> None:
    """Check the declared size and compression of a member before reading it.  Raises BundleError."""
    if member.file_size > 4 * math.prod(shape) + _HEADER_BYTES:
        raise BundleError(f"{path}: {name}: expected an array of shape {shape}, found {member.file_size:,} bytes")
    if member.compress_type != zipfile.ZIP_STORED:
        raise BundleError(f"{path}: {name}: expected an array that is not compressed")


def _read_array(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, shape: tuple[int, ...]
) -> F32:
    with archive.open(member) as file:
        data = io.BytesIO(file.read(member.file_size))
    if np.lib.format.read_magic(data) != (1, 0):
        raise BundleError(f"{path}: {name}: expected an array in format 1.0")
    found, by_columns, dtype = np.lib.format.read_array_header_1_0(data)
    # Compared before memory of the declared size is allocated; the dtype of a pickled array is object.
    if found != shape or by_columns or dtype != np.dtype("<f4"):
        raise BundleError(f"{path}: {name}: expected float32 {shape} in rows, got {_safe(dtype)} {_safe(found)}")
    array = np.frombuffer(data.read(), np.dtype("<f4")).astype(np.float32).reshape(shape)
    if not np.isfinite(array).all() or (name == "scaling/scale" and not (array > 0).all()):
        raise BundleError(f"{path}: {name}: expected finite numbers (and scales above 0)")
    return array
