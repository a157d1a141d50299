"""Checkpoints: the state of a training on disk, as plain arrays and JSON, from which it resumes.

    checkpoint.json     `TrainingState`: cursor, history, name of the array file, fingerprint of the training
    checkpoint-<n>.npz  `Arrays` at validation n: all variables of network and optimizer, carried state, kept weights

The JSON file is replaced last, by renaming: at any moment it names a complete array file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from stream_gru.config.train_schema import TrainingConfig
from stream_gru.core.errors import ConfigError, DataError
from stream_gru.core.types import F32
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.schedule import Cursor
from stream_gru.training.splits import Scaling, SegmentTable

NAME = "checkpoint.json"
_STATE = "state"
Array = NDArray[np.generic]


class TrainingState(Struct, kw_only=True, frozen=True):
    """Progress of a training at the end of a validation interval.

    ``history`` has one row per validation; ``kept`` is the validation whose weights are kept, from 1, 0 when there is
    none yet; ``kept_loss`` its loss; ``trained_on`` how many forecasts and labels counted in the training loss so far.
    """

    cursor: Cursor = Cursor()
    kept: int = 0
    kept_loss: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    trained_on: tuple[float, float] = (0.0, 0.0)
    fingerprint: str = ""
    arrays: str = ""


@dataclass(frozen=True)
class Arrays:
    """``variables`` of network and optimizer in their own order, ``kept`` the trainable ones that are kept.

    ``state`` (B, S) is the hidden state that the next batch continues from, None at the beginning of an epoch.
    """

    variables: Sequence[Array]
    kept: Sequence[Array]
    state: F32 | None = None


def fingerprint(spec: NetworkSpec, training: TrainingConfig, scaling: Scaling, table: SegmentTable) -> str:
    """A hash of everything that must agree to resume; limits, patience and TensorBoard may change."""
    fixed = msgspec.structs.replace(training, epochs=1, max_updates=0, patience=1, tensorboard="")
    digest = hashlib.sha256(repr((spec, fixed)).encode())
    for array in (scaling.mean, scaling.scale, table.x, table.label, table.stop):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_checkpoint(folder: Path, state: TrainingState, arrays: Arrays) -> None:
    """Write both files, the JSON last; older array files are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    state = msgspec.structs.replace(state, arrays=f"checkpoint-{len(state.history):05d}.npz")
    named = {f"variable_{i}": value for i, value in enumerate(arrays.variables)}
    named |= {f"kept_{i}": value for i, value in enumerate(arrays.kept)}
    named |= {} if arrays.state is None else {_STATE: arrays.state}
    part = folder / "checkpoint.part"
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **named)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / state.arrays)
    part.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1))
    part.replace(folder / NAME)
    for old in folder.glob("checkpoint-*.npz"):
        if old.name != state.arrays:
            old.unlink()


def require_checkpoint(folder: Path) -> None:
    """Raise ConfigError when there is no checkpoint to resume from."""
    if not (folder / NAME).exists():
        raise ConfigError(f"--resume: expected a checkpoint at {folder / NAME}, found none; train without --resume")


def load_checkpoint(folder: Path, expected: str) -> tuple[TrainingState, Arrays]:
    """Return what was saved last.

    Raises ConfigError when there is no checkpoint or when it belongs to another network, configuration or recording
    (``expected`` fingerprint), DataError when it cannot be read.
    """
    require_checkpoint(folder)
    try:
        state = msgspec.json.decode((folder / NAME).read_bytes(), type=TrainingState)
        with np.load(folder / Path(state.arrays).name, allow_pickle=False) as file:
            named = dict(file)
    except (msgspec.DecodeError, OSError, ValueError) as error:
        msg = f"{folder / NAME}: not a readable checkpoint ({error}); delete it to start from the beginning"
        raise DataError(msg) from error
    if state.fingerprint != expected:
        msg = (
            f"{folder / NAME}: belongs to another network, training configuration or recording; "
            "delete it or train in another folder"
        )
        raise ConfigError(msg)
    return state, Arrays(_numbered(named, "variable_"), _numbered(named, "kept_"), _hidden_state(named))


def _hidden_state(named: dict[str, Array]) -> F32 | None:
    return np.asarray(named[_STATE], np.float32) if _STATE in named else None


def _numbered(named: dict[str, Array], prefix: str) -> list[Array]:
    return [named[f"{prefix}{i}"] for i in range(sum(name.startswith(prefix) for name in named))]
