"""Train in a process of its own: ``python -m stream_gru.examples.recipes.train_worker CONFIG BUNDLE REPORT.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from stream_gru.config import load_config
from stream_gru.connectors.registry import CATALOG
from stream_gru.examples.recipes.results import peak_memory
from stream_gru.model.optional_packages import require_training_extra


def main(arguments: list[str]) -> None:
    """Run the module as a command."""
    with require_training_extra():
        from stream_gru.training.progress import default_reporter
        from stream_gru.training.train import train
    config, bundle, report = map(Path, arguments)
    settings = load_config(config, CATALOG)
    trained = train(settings, bundle, bundle.with_suffix(".work"), default_reporter(), lambda _: None)
    seconds = sum(row["seconds"] for row in trained.fitted.history)
    report.write_text(json.dumps({"seconds": seconds, "memory_bytes": peak_memory()}))


if __name__ == "__main__":
    main(sys.argv[1:])
