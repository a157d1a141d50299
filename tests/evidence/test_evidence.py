"""The configurations behind docs/real-recordings.md train and stream; on the real recordings where these exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stream_gru.config import load_config, require_training
from stream_gru.connectors.registry import CATALOG
from stream_gru.model.bundle import load_bundle

EVIDENCE = Path(__file__).parents[1] / "evidence"
DATA = Path(os.environ.get("STREAM_GRU_DATA", Path(__file__).parents[3] / "shared" / "data"))
CONFIGURATIONS = sorted(EVIDENCE.glob("*.toml"))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="STREAM_GRU_DATA: the public recordings are not here")


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_the_configurations_are_sound(path: Path) -> None:
    """Each passes `check` and is one for training."""
    require_training(load_config(path, CATALOG), str(path))


@needs_data
@pytest.mark.data
@pytest.mark.train
@pytest.mark.parametrize("name", ["etth1", "nab_machine_temperature"])
def test_they_train_and_stream(name: str, tmp_path: Path) -> None:
    """One epoch on the real recording gives a bundle whose scores stand beside the baselines'."""
    pytest.importorskip("tensorflow")
    arguments = ["train", str(EVIDENCE / f"{name}.toml"), "--out", str(tmp_path / "b"), "--epochs", "1"]
    environment = {**os.environ, "STREAM_GRU_DATA": str(DATA)}
    done = subprocess.run(
        [sys.executable, "-m", "stream_gru", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    forecast = load_bundle(tmp_path / "b").manifest.scores["forecast"]
    assert isinstance(forecast, dict)
    assert set(forecast["baselines"]) == {"persistence", "seasonal_naive", "linear_ar"}
