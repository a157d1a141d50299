"""Draw the README's picture: the live view of the demonstration, as an SVG.

python -m tests.evidence.picture sample_data/demo.svg
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console

from stream_gru.cli.demo import LiveView
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.prediction import prediction_at
from stream_gru.model.bundle import load_bundle
from stream_gru.pipeline.pipeline import Pipeline
from tests.support.paths import BUNDLE, HELD_OUT

_FAULT = "cavitation"  # the view is drawn when a pump has been in this mode for a while
_WHILE = 400


def picture() -> str:
    """The view after the first rows of the held-out recordings."""
    bundle = load_bundle(BUNDLE)
    batch = read_files([str(HELD_OUT)], Fields.of(bundle.manifest.input, bundle.manifest.channels))
    pipeline = Pipeline(bundle, "numpy")
    view = LiveView(pipeline)
    view.metrics_address = "http://127.0.0.1:9723/metrics"
    seen = 0
    for first in range(0, len(batch), 4):
        out = pipeline.process(batch.take(slice(first, first + 4)))
        view.write(out)
        seen += bool(len(out)) and prediction_at(out, 0).label == _FAULT
        if seen == _WHILE:
            break
    console = Console(record=True, width=116, file=Path("/dev/null").open("w"), force_terminal=True)  # noqa: SIM115
    console.print(view.draw())
    svg = console.export_svg(title="stream-gru demo")
    # Our files fetch nothing from the network: the system's fonts are used.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(picture())
