from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.cli.bundle import describe
from stream_gru.core.errors import BundleError, UnsupportedModelError
from stream_gru.model import bundle as module
from stream_gru.model.bundle import Bundle, load_bundle, model_id, verify_files, write_bundle
from stream_gru.model.manifest import Embedding, FileEntry, Manifest, manifest_problems
from stream_gru.training.evaluation.scores import Scores, class_scores
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated

Damage = Callable[[dict[str, Any]], None]


def write_on_disk(path: Path, **options: Any) -> Bundle:
    """A bundle on disk with all its files; the two that are not weights hold any bytes."""
    made = calibrated(make_bundle(labels=2, **options))
    extra = {"model.tflite": b"flatbuffer", "model.keras": b"archive", "report.html": b"<html>"}
    return write_bundle(path, made.manifest, made.weights, extra)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A bundle on disk."""
    return write_on_disk(tmp_path / "pump.bundle").path


def edit(path: Path, damage: Damage, *, honest: bool = True) -> None:
    """Change the manifest; ``honest``: with a matching digest, as an attacker would."""
    manifest = json.loads((path / "manifest.json").read_text())
    damage(manifest)
    if honest:
        try:
            # As a bundle is written: 1 where a float belongs becomes 1.0, which counts for the digest.
            manifest = msgspec.to_builtins(msgspec.json.decode(json.dumps(manifest), type=Manifest))
        except msgspec.ValidationError:
            pass  # refused before the digest is looked at
        else:
            manifest["digest"] = module.document_digest(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def replace_weights(path: Path, data: bytes) -> None:
    """Replace the bytes of the weights, with matching size and hash."""
    (path / "weights.npz").write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(path, lambda manifest: manifest["files"].update({"weights.npz": entry}))


def arrays(path: Path) -> dict[str, Any]:
    """The arrays of a bundle."""
    with np.load(path / "weights.npz") as file:
        return {name: file[name] for name in file.files}


def packed(weights: dict[str, Any], compressed: bool = False, **options: Any) -> bytes:
    """Arrays as .npz."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **weights, **options)
    return buffer.getvalue()


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Manifest, weights and flatbuffer come back equal, and writing again gives the same bytes."""
    written = write_on_disk(tmp_path / "a.bundle")
    made = make_bundle(labels=2)
    assert {k: v.tobytes() for k, v in written.weights.items()} == {k: v.tobytes() for k, v in made.weights.items()}
    assert written.tflite == b"flatbuffer"
    assert written.manifest.model_id == model_id(written.manifest, written.weights)
    again = write_bundle(
        tmp_path / "b.bundle", written.manifest, written.weights,
        {name: (written.path / name).read_bytes() for name in ("model.tflite", "model.keras", "report.html")},
    )  # fmt: skip
    for file in written.path.iterdir():
        assert file.read_bytes() == (again.path / file.name).read_bytes()
    verify_files(again)


def test_an_integer_in_a_float_key_changes_nothing(tmp_path: Path) -> None:
    """A period of 1 is a period of 1.0, for the id and the digest too."""
    made = make_bundle(labels=2, period_s=1)
    assert write_bundle(tmp_path / "a", made.manifest, made.weights, {}).manifest.period_s == 1.0


@pytest.mark.parametrize("cell", ["gru", "lstm", "simple_rnn"])
@pytest.mark.parametrize("options", [{"horizon": 0}, {"quantiles": (0.1, 0.5, 0.9)}, {"units": (4, 3), "calendar": 2}])
def test_every_kind_of_model_is_read_back(tmp_path: Path, cell: str, options: dict[str, Any]) -> None:
    """All cells, heads and depths are written and read."""
    write_on_disk(tmp_path / "a.bundle", cell=cell, **options)


def test_scores_of_many_labels_fit_into_a_bundle(tmp_path: Path) -> None:
    """A model of 1,600 labels is written with its scores, and inspect lists every label."""
    made = make_bundle(labels=1600, units=(2,))
    assert made.manifest.classes is not None
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random((300, 1600)), made.manifest.classes.labels
    classes = class_scores(labels, rng.integers(0, 1600, 300), probabilities, ["s"], np.zeros(300, np.int64), 0)
    scores = msgspec.to_builtins(Scores(streams=1, applied=300, dropped={}, resets={}, classes=classes))
    written = write_bundle(tmp_path / "many.bundle", made.with_manifest(scores=scores).manifest, made.weights, {})
    assert (written.path / "manifest.json").stat().st_size < 1_000_000
    lines = describe(written)
    assert "scores: stored in a form that this version does not read" not in lines
    assert sum(line.startswith("label") for line in lines) == 1600


def test_a_manifest_that_is_too_large_names_the_bundle(path: Path) -> None:
    """The error names the requested bundle, which stays unchanged."""
    bundle = load_bundle(path)
    huge = bundle.with_manifest(scores={"text": "x" * module.MAX_MANIFEST_BYTES}).manifest
    with pytest.raises(BundleError, match=rf"^{path}: manifest.json would have 16,\d+,\d+ bytes, at most 16,777,216 "):
        write_bundle(path, huge, bundle.weights, {})
    assert load_bundle(path).manifest == bundle.manifest
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["manifest.json", "weights.npz", "model.tflite"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_a_truncated_file_is_rejected(path: Path, name: str, share: float) -> None:
    """The error names the file, however much is missing at its end."""
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: int(share * (len(data) - 3))])
    with pytest.raises(BundleError, match=name):
        load_bundle(path)


@pytest.mark.parametrize("name", ["weights.npz", "model.tflite", "model.keras", "report.html"])
def test_a_changed_byte_is_detected_by_the_hash(path: Path, name: str) -> None:
    """Files that the runtime reads are compared on loading, the others by `verify_files`."""
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    loaded = load_bundle(path)
    (path / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: SHA-256 differs"):
        verify_files(loaded)
    if name in ("weights.npz", "model.tflite"):
        with pytest.raises(BundleError, match=rf"{name}: SHA-256 differs"):
            load_bundle(path)


@pytest.mark.parametrize("name", ["manifest.json", "weights.npz", "model.tflite"])
def test_a_missing_file_a_link_or_a_folder_is_rejected(path: Path, tmp_path: Path, name: str) -> None:
    """Only plain files are opened."""
    shutil.move(path / name, tmp_path / name)
    with pytest.raises(BundleError, match=rf"{name}: cannot be read: No such file"):
        load_bundle(path)
    (path / name).symlink_to(tmp_path / name)
    with pytest.raises(BundleError, match=rf"{name}: expected a plain file, found a link"):
        load_bundle(path)
    (path / name).unlink()
    (path / name).mkdir()
    with pytest.raises(BundleError, match=rf"{name}: expected a plain file"):
        load_bundle(path)


def test_too_large_files_are_rejected_before_they_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits apply to the sizes in the manifest and to the actual sizes."""
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(BundleError, match=r"weights\.npz: expected at most 1,000 bytes, the manifest says"):
        load_bundle(path)
    edit(path, lambda m: m["files"]["weights.npz"].update(bytes=10))
    with pytest.raises(BundleError, match=r"weights\.npz: expected at most 1,000 bytes, got"):
        load_bundle(path)
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 100)
    with pytest.raises(BundleError, match=r"manifest\.json: expected at most 100 bytes"):
        load_bundle(path)


def test_all_files_together_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The total size of the files that are read, and the memory that the layers need, have limits too."""
    monkeypatch.setattr(module, "MAX_READ_BYTES", 3000)
    with pytest.raises(BundleError, match=r"expected files to read of at most 3,000 bytes, got"):
        load_bundle(path)
    monkeypatch.setattr(module, "MAX_READ_BYTES", 64 * 1024 * 1024)

    def grow(manifest: dict[str, Any]) -> None:
        layer = manifest["layers"][0]
        layers = [{**layer, "units": 4096}, {**layer, "name": "recurrent_1", "units": 4096, "input_size": 4096}]
        manifest.update(layers=layers, state_size=8192)

    edit(path, grow)
    with pytest.raises(BundleError, match=r"expected arrays of at most 67,108,864 bytes, got 60\d,\d+,\d+"):
        load_bundle(path)


def test_a_named_pipe_instead_of_a_file_does_not_block(path: Path) -> None:
    """It is rejected without waiting for a writer."""
    (path / "weights.npz").unlink()
    os.mkfifo(path / "weights.npz")
    with pytest.raises(BundleError, match=r"weights\.npz: expected a plain file"):
        load_bundle(path)


@pytest.mark.parametrize("units", [0, -1, 4097])
def test_vectors_have_a_valid_size(units: int) -> None:
    """Numpy would take a size of -1 from the file."""
    manifest = make_bundle(categories=(5,), embedding=3).manifest
    odd = msgspec.structs.replace(manifest, embeddings=[Embedding(channel="k0", units=units)])
    assert any("embeddings[0].units: expected 1..4,096" in text for text in manifest_problems(odd))


def test_too_many_layers_or_channels_are_rejected_at_once() -> None:
    """The check runs before anything is computed from them."""
    manifest = make_bundle().manifest
    many = msgspec.structs.replace(manifest, layers=list(manifest.layers) * 257)
    assert [text for text in manifest_problems(many) if "layers: expected at most 256, got 257" in text]
    many_channels = [msgspec.structs.replace(manifest.channels[0], name=f"c{i}") for i in range(4097)]
    many = msgspec.structs.replace(manifest, channels=many_channels)
    assert list(manifest_problems(many)) == ["channels: expected at most 4,096, got 4,097"]


def test_a_path_that_is_no_bundle_is_an_error(tmp_path: Path) -> None:
    """A file, nothing and an empty folder are three different messages."""
    with pytest.raises(BundleError, match="expected a bundle folder, found nothing"):
        load_bundle(tmp_path / "gone")
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="expected a bundle folder, found a file"):
        load_bundle(str(tmp_path / "file"))
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be read"):
        load_bundle(tmp_path)


UNSUPPORTED: dict[str, tuple[Damage, str]] = {
    "newer format": (lambda m: m.update(format_version=3), r"format_version: .* reads 2, got 3; install a matching"),
    "unknown key": (lambda m: m.update(attention=True), "not supported by this version of stream-gru: .*attention"),
    "unknown key of a layer": (
        lambda m: m["layers"][0].update(peephole=1),
        "not supported by this version of stream-gru: .*peephole",
    ),
    "unknown cell": (
        lambda m: m["layers"][0].update(cell="mamba"),
        "not supported by this version of stream-gru: .*mamba",
    ),
    "unknown activation": (
        lambda m: m["layers"][0].update(activation="mish"),
        "not supported by this version of stream-gru: .*mish",
    ),
    "unknown regime": (lambda m: m.update(regime="magic"), "not supported by this version of stream-gru: .*magic"),
    "unknown file": (lambda m: m["files"].update({"run.py": m["files"]["weights.npz"]}), "unknown file 'run.py'"),
    "file elsewhere": (lambda m: m["files"].update({"../x": m["files"]["weights.npz"]}), r"unknown file '\.\./x'"),
    "back too far": (lambda m: m["conditioning"].update(clock_backwards_s=1e300), "clock_backwards_s"),
    "odd delimiter": (lambda m: m["input"].update(delimiter="."), "delimiter"),
    "missing key": (lambda m: m.pop("channels"), "channels"),
    "text for a number": (lambda m: m.update(period_s="1"), "period_s"),
}


@pytest.mark.parametrize("story", sorted(UNSUPPORTED))
def test_unknown_parts_are_unsupported(path: Path, story: str) -> None:
    """An unknown key, layer, option or file is an error that names it."""
    damage, message = UNSUPPORTED[story]
    edit(path, damage)
    with pytest.raises(UnsupportedModelError, match=message):
        load_bundle(path)


CONTRADICTIONS: dict[str, tuple[Damage, str]] = {
    "no weights": (lambda m: m["files"].pop("weights.npz"), "expected an entry for weights.npz"),
    "no channels": (lambda m: m.update(channels=[]), "channels: expected distinct names"),
    "channel twice": (lambda m: m["channels"][1].update(name="c0"), "channels: expected distinct names"),
    "no layers": (lambda m: m.update(layers=[]), "layers: expected at least one"),
    "width": (lambda m: m["layers"][0].update(input_size=4), r"layers\[0\]: expected recurrent_0 with 3 inputs"),
    "units": (lambda m: m["layers"][0].update(units=5000), r"layers\[0\]: .* 1\.\.4096 units"),
    "state": (lambda m: m.update(state_size=9), "state_size: expected the sum over the layers, got 9"),
    "no head": (lambda m: m.update(forecast=None, classes=None), "expected a forecast head, a class head or both"),
    "no labels": (lambda m: m["classes"].update(labels=[]), "classes.labels: expected distinct labels, at least one"),
    "label twice": (lambda m: m["classes"].update(labels=["a", "a"]), "classes.labels: expected distinct"),
    "target": (lambda m: m["forecast"].update(targets=["c0", "x"]), "forecast.targets: expected channels among"),
    "horizon": (lambda m: m["forecast"].update(horizon=1025), r"forecast.horizon: expected 1\.\.1024"),
    "quantiles": (lambda m: m["forecast"].update(quantiles=[0.5, 0.1, 0.9]), "forecast.quantiles: expected ascending"),
    "window": (lambda m: m.update(regime="windowed"), "window: expected a positive number of steps"),
    "period": (lambda m: m.update(period_s=0), "period_s: expected at least 1e-06 seconds"),
    "short period": (lambda m: m.update(period_s=1e-300), r"period_s: expected .*, got 1e-300"),
    "long period": (lambda m: m.update(period_s=1e300), r"period_s: expected .* at most 1e\+09, got 1e\+300"),
    "warm-up": (lambda m: m.update(warm_up=-1), "warm_up: expected a number of steps, got -1"),
    "range": (lambda m: m["channels"][1].update(min=2, max=2), r"channels\[1\]: expected min below max"),
    "no samples": (lambda m: m["calibration"].update(samples=0), "calibration.samples: expected at least 1, got 0"),
    "calibration": (lambda m: m["calibration"]["residuals"].pop(), r"calibration.residuals: .* shape \(2, 4, 3\)"),
    "levels": (lambda m: m["calibration"].update(levels=[0.5, 0.1, 0.9]), "calibration.levels: expected"),
    "another model": (lambda m: m.update(model_id="0123456789ab"), "model_id: expected .* the manifest was changed"),
    "other labels": (lambda m: m["classes"].update(labels=["a", "b"]), "the manifest was changed"),
    "size": (lambda m: m["files"]["weights.npz"].update(bytes=7), "weights.npz: expected 7 bytes"),
    "negative size": (lambda m: m["files"]["weights.npz"].update(bytes=-1), "weights.npz: expected at most"),
}


@pytest.mark.parametrize("story", sorted(CONTRADICTIONS))
def test_a_manifest_that_breaks_a_rule_is_rejected(path: Path, story: str) -> None:
    """The error gives the key, the expected and the actual value, before any array is read."""
    damage, message = CONTRADICTIONS[story]
    edit(path, damage)
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m["calibration"]["residuals"][0][0].__setitem__(0, -1.5),
        lambda m: m["channels"][0].update(max=5.0),
        lambda m: m["conditioning"].update(max_fill_steps=6),
        lambda m: m["input"].update(time_unit="ms"),
        lambda m: m.update(warm_up=3),
        lambda m: m["files"]["report.html"].update(sha256="0" * 64),
    ],
)
def test_an_edited_manifest_is_rejected_even_if_the_weights_fit(path: Path, damage: Damage) -> None:
    """Limits, calibration and input are protected by the digest, though not part of the id."""
    edit(path, damage, honest=False)
    with pytest.raises(BundleError, match="digest: expected the SHA-256 of the other keys"):
        load_bundle(path)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format_version":2}', b'{"format_version":"1"}', b"[" * 100_000,
     b'{"a":' * 100_000, b'{"format_version":2,"x":' + b"[" * 100_000, b'{"format_version":1,"x":"\xff"}',
     b'{"format_version":' + b"9" * 5000 + b"}", b'{"format_version":2,"period_s":1e999}'],
)  # fmt: skip
def test_invalid_json_is_rejected(path: Path, text: bytes) -> None:
    """Damaged, deeply nested or unrelated JSON is a BundleError that names the file."""
    (path / "manifest.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        load_bundle(path)


def _bad_weights() -> Iterator[tuple[str, Callable[[dict[str, Any]], bytes], str]]:
    def changed(name: str, value: Any) -> Callable[[dict[str, Any]], bytes]:
        return lambda weights: packed({**weights, name: value(weights[name])})

    kernel = "recurrent_0/kernel"
    yield "an array more", lambda w: packed({**w, "more": np.zeros(1, np.float32)}), r"exactly the arrays .*more"
    yield "an array less", lambda w: packed({k: w[k] for k in w if k != kernel}), r"exactly the arrays .*kernel"
    yield "wrong shape", changed(kernel, lambda a: a[:, 1:]), r"kernel: expected float32 \(3, 24\)"
    yield "transposed", changed(kernel, lambda a: a.T), r"kernel: expected float32"
    yield "by columns", changed(kernel, np.asfortranarray), r"kernel: expected float32 .* in rows"
    yield "wrong dtype", changed(kernel, lambda a: a.astype(np.float16)), r"kernel: expected float32 .* got float16"
    yield "big-endian", changed(kernel, lambda a: a.astype(">f4")), r"kernel: expected float32 .* got >f4"
    yield "not a number", changed(kernel, lambda a: a * np.float32("nan")), "kernel: expected finite numbers"
    yield "infinite", changed(kernel, lambda a: a * np.float32("inf")), "kernel: expected finite numbers"
    yield "scale 0", changed("scaling/scale", lambda a: a * 0), "scaling/scale: expected finite numbers .*above 0"
    yield "other numbers", changed(kernel, lambda a: a * 2), "model_id: expected"
    yield "pickled", changed("scaling/mean", lambda a: np.array([Boom()] * 3)), "scaling/mean: expected float32"
    yield "bomb", lambda w: packed({**w, kernel: np.zeros(10**7, np.float32)}, compressed=True), "not compressed"
    yield "packed", lambda w: packed(w, compressed=True), "expected an array that is not compressed"
    yield "long", lambda w: packed({**w, kernel: np.zeros(2000, np.float32)}), r"shape \(3, 24\), found 8,128 bytes"
    yield "longer", lambda w: packed({**w, kernel: np.zeros(10**5, np.float32)}), "expected at most .* got 40"
    yield "a thousand more", lambda w: packed({**w, **_more(1000)}), "expected at most .* for the arrays of the layers"
    yield "no archive", lambda w: b"x" * 100, "not a plain .npz"
    yield "empty archive", lambda w: packed({}), "exactly the arrays"
    yield "declares a terabyte", _declares_terabyte, "kernel: expected float32"
    yield "array twice", _twice, "exactly the arrays"


def _more(n: int) -> dict[str, Any]:
    """Arrays without elements."""
    return {f"more{i}": np.zeros(0, np.float32) for i in range(n)}


class Boom:
    """Unpickling this would have a visible effect."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def _declares_terabyte(weights: dict[str, Any]) -> bytes:
    """A member whose header declares more bytes than it has."""
    data = packed(weights)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for member in old.namelist():
            content = old.read(member)
            if member == "recurrent_0/kernel.npy":
                content = content.replace(b"(3, 24), }     ", b"(333333, 999)} ")
            new.writestr(member, content)
    return buffer.getvalue()


def _twice(weights: dict[str, Any]) -> bytes:
    """A member that is in the archive twice."""
    buffer = io.BytesIO(packed(weights))
    with zipfile.ZipFile(buffer, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("scaling/mean.npy", b"")
    return buffer.getvalue()


@pytest.mark.parametrize(("make", "message"), [pytest.param(m, t, id=n) for n, m, t in _bad_weights()])
def test_invalid_weights_are_rejected(path: Path, make: Callable[[Any], bytes], message: str) -> None:
    """With matching size and hash: names, shapes, types and numbers are checked, and nothing is unpickled."""
    replace_weights(path, make(arrays(path)))
    with pytest.raises(BundleError, match=message):
        load_bundle(path)


def test_writing_replaces_a_bundle_and_nothing_else(tmp_path: Path) -> None:
    """An older bundle is replaced as a whole; another folder stays unchanged; an invalid bundle is not written."""
    first = write_on_disk(tmp_path / "a.bundle")
    second = write_on_disk(tmp_path / "a.bundle", seed=3)
    assert second.manifest.model_id != first.manifest.model_id
    assert load_bundle(tmp_path / "a.bundle").manifest.model_id == second.manifest.model_id
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="expected a new path or an older bundle to replace"):
        write_on_disk(tmp_path / "mine")
    broken = {**second.weights, "scaling/mean": second.weights["scaling/mean"] * np.float32("nan")}
    with pytest.raises(BundleError, match="finite"):
        write_bundle(tmp_path / "a.bundle", second.manifest, broken, {})
    assert load_bundle(tmp_path / "a.bundle").manifest.model_id == second.manifest.model_id
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.bundle", "mine"]


@pytest.mark.parametrize("key", ["seen_min", "seen_max", "min", "max"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_limits_of_channels_are_finite(key: str, value: float) -> None:
    """JSON has no such numbers, but a manifest built in memory can have them."""
    manifest = make_bundle().manifest
    channel = msgspec.structs.replace(manifest.channels[0], **{key: value})
    odd = msgspec.structs.replace(manifest, channels=[channel, *manifest.channels[1:]])
    assert f"channels[0].{key}: expected a finite number, got {value}" in list(manifest_problems(odd))


def test_a_bundle_that_could_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error about a file over the limit names the bundle, not a temporary folder."""
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1000)
    with pytest.raises(BundleError, match=r"a\.bundle: weights\.npz would have [\d,]+ bytes, at most 1,000"):
        write_on_disk(tmp_path / "a.bundle")
    assert not list(tmp_path.iterdir())


def test_check_target_detects_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    """The root, a file and a path below a file are rejected; a new path, an empty folder and a bundle are accepted."""
    (tmp_path / "file").write_text("x")
    for target in (Path("/"), tmp_path, tmp_path / "file"):
        with pytest.raises(BundleError, match="expected a new path or an older bundle"):
            module.check_target(target)
    with pytest.raises(BundleError, match="file is not a writable folder"):
        module.check_target(tmp_path / "file" / "deeper" / "a.bundle")
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new" / "a.bundle", write_on_disk(tmp_path / "b").path):
        module.check_target(target)


def test_the_id_depends_on_weights_and_contract() -> None:
    """A changed weight, label or channel order gives another id; a changed date does not."""
    made = make_bundle(labels=2)
    known = model_id(made.manifest, made.weights)
    other = {**made.weights, "scaling/mean": made.weights["scaling/mean"] + 1}
    assert model_id(made.manifest, other) != known
    assert model_id(made.with_manifest(period_s=2.0).manifest, made.weights) != known
    assert model_id(made.with_manifest(channels=made.manifest.channels[::-1]).manifest, made.weights) != known
    assert model_id(made.with_manifest(created="2030-01-01T00:00:00Z").manifest, made.weights) == known


FILES = ("manifest.json", "weights.npz", "model.tflite")


def _stored() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        written = write_on_disk(Path(folder) / "a.bundle")
        return {name: (written.path / name).read_bytes() for name in FILES}


STORED = _stored()


def _said(found: Bundle) -> object:
    return (
        msgspec.json.encode(found.manifest),
        {name: value.tobytes() for name, value in found.weights.items()},
        found.tflite,
    )


def _load(contents: dict[str, bytes]) -> Bundle | None:
    with tempfile.TemporaryDirectory() as folder:
        for name, data in contents.items():
            (Path(folder) / name).write_bytes(data)
        try:
            return load_bundle(folder)
        except BundleError:
            return None


damages = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4)
WHOLE = _load(STORED)


def _damaged(data: bytes, places: list[tuple[float, int]]) -> bytes:
    changed = bytearray(data)
    for share, value in places:
        changed[int(share * len(changed))] = value
    return bytes(changed)


@settings(max_examples=300)
@given(st.sampled_from(FILES), damages)
def test_damaged_bytes_never_give_another_model(name: str, places: list[tuple[float, int]]) -> None:
    """Any changed bytes in any file give a BundleError or (white space in the manifest) the same bundle."""
    assert WHOLE is not None
    found = _load({**STORED, name: _damaged(STORED[name], places)})
    assert found is None or _said(found) == _said(WHOLE)


@settings(max_examples=300)
@given(damages)
def test_damaged_weights_with_hashes_that_fit_never_give_another_model(places: list[tuple[float, int]]) -> None:
    """With matching size, hash and digest the archive is read safely, and the id is that of its numbers."""
    assert WHOLE is not None
    data = _damaged(STORED["weights.npz"], places)
    entry = FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    manifest = msgspec.structs.replace(WHOLE.manifest, files={**WHOLE.manifest.files, "weights.npz": entry})
    manifest = msgspec.structs.replace(manifest, digest=module.document_digest(msgspec.to_builtins(manifest)))
    found = _load({**STORED, "weights.npz": data, "manifest.json": msgspec.json.encode(manifest)})
    if found is not None:
        assert {k: v.tobytes() for k, v in found.weights.items()} == {k: v.tobytes() for k, v in WHOLE.weights.items()}
