"""Where a training stands, on disk: plain arrays and JSON, so that it can go on after any stop.

    checkpoint.json        place, best round, history, name of the array file, fingerprint of what is trained
    checkpoint-<round>.npz every variable of network and optimizer, the carried state, and the best weights so far

The JSON file is replaced last, by renaming: whenever the machine stops, it names a complete array file.
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
from stream_gru.training.schedule import Place
from stream_gru.training.segments import Rows, Scaling

NAME = "checkpoint.json"
_CARRIED = "carried"
Array = NDArray[np.generic]


class Standing(Struct, kw_only=True, frozen=True):
    """How far training has come, at the end of a round.

    ``history`` has a row for each round; ``best_round`` counts from 1, 0 when there is none yet; ``learnt`` how many
    forecasts and labels have been learnt from so far.
    """

    place: Place = Place()
    best_round: int = 0
    best_loss: float | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    learnt: tuple[float, float] = (0.0, 0.0)
    fingerprint: str = ""
    arrays: str = ""


@dataclass(frozen=True)
class Arrays:
    """``variables`` of network and optimizer in their own order, ``best`` the trainable ones of the best round.

    ``carried`` (B, S) is the state with which the next batch goes on, None at the beginning of a pass.
    """

    variables: Sequence[Array]
    best: Sequence[Array]
    carried: F32 | None = None


def fingerprint(spec: NetworkSpec, training: TrainingConfig, scaling: Scaling, rows: Rows) -> str:
    """A hash of everything that must agree for training to go on; budgets, patience and TensorBoard may change."""
    fixed = msgspec.structs.replace(training, epochs=1, max_updates=0, patience=1, tensorboard="")
    digest = hashlib.sha256(repr((spec, fixed)).encode())
    for array in (scaling.mean, scaling.scale, rows.x, rows.label, rows.stop):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def save_checkpoint(folder: Path, standing: Standing, arrays: Arrays) -> None:
    """Write both files, the JSON last; older array files are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    standing = msgspec.structs.replace(standing, arrays=f"checkpoint-{len(standing.history):05d}.npz")
    named = {f"variable_{i}": value for i, value in enumerate(arrays.variables)}
    named |= {f"best_{i}": value for i, value in enumerate(arrays.best)}
    named |= {} if arrays.carried is None else {_CARRIED: arrays.carried}
    part = folder / "checkpoint.part"
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **named)
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / standing.arrays)
    part.write_bytes(msgspec.json.format(msgspec.json.encode(standing), indent=1))
    part.replace(folder / NAME)
    for old in folder.glob("checkpoint-*.npz"):
        if old.name != standing.arrays:
            old.unlink()


def require_checkpoint(folder: Path) -> None:
    """Raise ConfigError when there is nothing to go on from."""
    if not (folder / NAME).exists():
        raise ConfigError(f"--resume: expected a checkpoint at {folder / NAME}, found none; train without --resume")


def load_checkpoint(folder: Path, expected: str) -> tuple[Standing, Arrays]:
    """Return what was saved last.

    Raises ConfigError when nothing was or when it belongs to another network, configuration or recording (``expected``
    fingerprint), DataError when it cannot be read.
    """
    require_checkpoint(folder)
    try:
        standing = msgspec.json.decode((folder / NAME).read_bytes(), type=Standing)
        with np.load(folder / Path(standing.arrays).name, allow_pickle=False) as file:
            named = dict(file)
    except (msgspec.DecodeError, OSError, ValueError) as error:
        msg = f"{folder / NAME}: not a readable checkpoint ({error}); delete it to start anew"
        raise DataError(msg) from error
    if standing.fingerprint != expected:
        msg = (
            f"{folder / NAME}: belongs to another network, training configuration or recording; "
            "delete it or train in another folder"
        )
        raise ConfigError(msg)
    return standing, Arrays(_numbered(named, "variable_"), _numbered(named, "best_"), _carried(named))


def _carried(named: dict[str, Array]) -> F32 | None:
    return np.asarray(named[_CARRIED], np.float32) if _CARRIED in named else None


def _numbered(named: dict[str, Array], prefix: str) -> list[Array]:
    return [named[f"{prefix}{i}"] for i in range(sum(name.startswith(prefix) for name in named))]
