"""Train on the public recordings and print the tables of docs/real-recordings.md.

Run by ``make evidence`` as ``python -m tests.evidence OUT``.

Needs STREAM_GRU_DATA.  A bundle that is already in OUT is evaluated, not trained again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.paths import BUNDLE

HERE = Path(__file__).parent
FORECASTS = {
    "etth1": "ETTh1, 7 channels, 24 steps ahead",
    "nab_machine_temperature": "NAB machine temperature, 12 steps ahead",
    "pump": "simulated pumps, 2 channels, 10 steps ahead",
}
COMPARED_WINDOW = 128


def stdout_of(*arguments: object) -> str:
    """Run stream-gru and return what it prints; its progress goes to the terminal."""
    words = [sys.executable, "-m", "stream_gru", *map(str, arguments)]
    return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout


def trained_bundle(out: Path, name: str) -> Path:
    """The trained bundle of a configuration."""
    if name == "pump":
        return BUNDLE
    path = out / f"{name}.bundle"
    if not path.exists():
        stdout_of("train", HERE / f"{name}.toml", "--out", path)
    return path


def scores(path: Path) -> dict[str, Any]:
    """The scores that training stored."""
    stored: dict[str, Any] = json.loads(stdout_of("inspect", path, "--json"))["scores"]
    return stored


def forecast_table(out: Path) -> list[str]:
    """One line a recording: scaled MSE and MAE of the model beside the baselines, and coverage."""
    names = ["model", "persistence", "seasonal_naive", "linear_ar"]
    heading = " | ".join(name.replace("_", " ") for name in names)
    lines = [f"| recording (scaled MSE / MAE) | {heading} | coverage of 90 % |", "|---" * 6 + "|"]
    for name, title in FORECASTS.items():
        forecast = scores(trained_bundle(out, name))["forecast"]
        errors = {"model": forecast["model"], **forecast["baselines"]}
        cells = [
            f"{errors[n]['mse_scaled']:.4f} / {errors[n]['mae_scaled']:.4f}" if n in errors else "-" for n in names
        ]
        flat = [value for row in forecast["coverage"] for value in row]
        lines.append(f"| {title} | {' | '.join(cells)} | {sum(flat) / len(flat):.1%} |")
    return lines


def regime_table(out: Path) -> list[str]:
    """The effect of carrying the state on a model of either regime."""
    recordings = f"{os.environ['STREAM_GRU_DATA']}/hapt/test.parquet"
    lines = ["| trained | run | accuracy of rows | worst recording |", "|---|---|---|---|"]
    for name, trained in (("hapt", "stateful"), ("hapt_windowed", f"windowed, {COMPARED_WINDOW} steps")):
        path = trained_bundle(out, name)
        for run, options in (
            ("carried", ["--regime", "stateful"]),
            (f"reset every {COMPARED_WINDOW} steps", ["--regime", "windowed", "--window", COMPARED_WINDOW]),
        ):
            classes = json.loads(stdout_of("evaluate", path, recordings, *options, "--json"))["classes"]
            worst = min(classes["accuracy_by_stream"].values())
            lines.append(f"| {trained} | {run} | {classes['accuracy']:.1%} | {worst:.1%} |")
    return lines


def main() -> None:
    """Print both tables."""
    if "STREAM_GRU_DATA" not in os.environ:
        sys.exit("STREAM_GRU_DATA: expected the folder of the public recordings")
    out = Path(sys.argv[1])
    for line in [*forecast_table(out), "", *regime_table(out)]:
        print(line)  # noqa: T201 - this is a command


if __name__ == "__main__":
    main()
