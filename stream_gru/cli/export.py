"""``stream-gru export``: convert a bundle for another tool."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.config import load_config, require_training
from stream_gru.connectors.registry import CATALOG
from stream_gru.model.bundle import load_bundle
from stream_gru.model.export.formats import FORMATS, ExportRequest, default_path, require_new_path, require_suffix
from stream_gru.model.export.formats import export as export_bundle


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--format", "name", type=click.Choice(list(FORMATS)), required=True, help="Write this format.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Write this new file or folder.  [default: the name of BUNDLE, in this folder]",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Calibrate and test tflite-int8 with the recordings of this training configuration.",
)
@click.option("--force", is_flag=True, help="Write tflite-int8 even if its scores fall below the limit.")
def export(bundle: Path, name: str, out: Path | None, config: Path | None, force: bool) -> None:
    """Convert BUNDLE to LiteRT, ONNX, Keras, TensorFlow or C.

    Inputs and outputs of the exported model are in engineering units.
    """
    int8 = name == "tflite-int8"
    if config is None and int8:
        raise click.UsageError("--format tflite-int8 needs --config, the training configuration of the bundle")
    if not int8 and (config or force):
        raise click.UsageError("--config and --force need --format tflite-int8")
    target = out or default_path(bundle, name)
    require_new_path(target)
    require_suffix(target, name)
    model = load_bundle(bundle)
    settings = None
    if config is not None:
        settings = load_config(config, CATALOG)
        require_training(settings, str(config))
    request = ExportRequest(model, settings, force, click.echo, str(config or ""))
    written = export_bundle(request, name, target)
    for path, size in written.items():
        click.echo(f"wrote {path}, {size:,} bytes")
    if model.manifest.window:
        click.echo(f"trained on windows: reset the state after every {model.manifest.window} samples")
    click.echo(f"load: {FORMATS[name].load.format(path=repr(str(target)))}")
