"""``stream-gru inspect`` and ``stream-gru export``: describe a verified bundle, write its network in other formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import msgspec

from stream_gru.config import load_config, require_training
from stream_gru.connectors.registry import CATALOG
from stream_gru.model.bundle import Bundle, load_bundle, verify_files
from stream_gru.model.explain import comparison_lines, explain, explanation_lines, parameter_rows, table
from stream_gru.model.export.formats import FORMATS, ExportRequest, default_path, require_new_path, require_suffix
from stream_gru.model.export.formats import export as export_bundle
from stream_gru.model.manifest import Channel, Manifest
from stream_gru.training.evaluation.scores import ClassScores, ForecastScores, class_lines, forecast_lines


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--explain", "explained", is_flag=True, help="Print the equations of the cells and what each gate does.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, explanations included.")
def inspect(bundle: Path, explained: bool, as_json: bool) -> None:
    """Verify BUNDLE and print its channels, heads, layers and scores.

    Also prints the parameter counts beside those of other cells, the parity with Keras and the SHA-256 of each file.
    """
    loaded = load_bundle(bundle)
    verify_files(loaded)
    if as_json:
        parts = {"parameters": parameter_rows(loaded), "cells": msgspec.to_builtins(explain(loaded))}
        click.echo(json.dumps({**msgspec.to_builtins(loaded.manifest), **parts}))
        return
    for line in describe(loaded, explained):
        click.echo(line)


def describe(bundle: Bundle, explained: bool = False) -> list[str]:
    """A text about the whole bundle, with the equations of its cells if ``explained``."""
    manifest = bundle.manifest
    window = f", reset every {manifest.window} steps" if manifest.window else ""
    lines = [
        f"model       {manifest.model_id}, created {manifest.created}",
        f"regime      {manifest.regime}{window}; warm-up {manifest.warm_up} steps",
        f"period      {manifest.period_s:g} s; gaps up to {manifest.conditioning.max_fill_steps} steps are filled",
        f"state       {manifest.state_size} numbers per stream",
        "",
        *table([["channel", "unit", "allowed", "seen in training"], *map(_channel_cells, manifest.channels)]),
        *([f"calendar    {', '.join(manifest.calendar)}"] if manifest.calendar else []),
        *_category_lines(manifest),
        "",
        *_head_lines(manifest),
        "",
        *_parameter_lines(bundle, explained),
    ]
    return [*lines, "", *_scores(bundle), "", *_parity(bundle), "", *_files(bundle)]


def _channel_cells(channel: Channel) -> list[str]:
    allowed = f"{_bound(channel.min)}..{_bound(channel.max)}"
    if channel.categories:
        allowed = f"categories 0..{channel.categories - 1}"
    return [channel.name, channel.unit, allowed, f"{channel.seen_min:.4g}..{channel.seen_max:.4g}"]


def _category_lines(manifest: Manifest) -> list[str]:
    """How the network encodes each categorical channel."""
    lines = []
    for part in manifest.categorical:
        encoding = (
            f"{part.categories:,} categories, each embedded as a learnt vector of {part.units} numbers"
            if part.units
            else f"{part.categories:,} categories, one-hot: one input each, no parameters"
        )
        lines.append(f"{manifest.channels[part.index].name}: {encoding}")
    return lines


def _head_lines(manifest: Manifest) -> list[str]:
    lines = []
    if manifest.forecast is not None:
        head = manifest.forecast
        kind = f"quantiles {head.quantiles}" if head.quantiles else "point"
        residual = "change from the last value" if head.residual else "the value itself"
        lines.append(f"forecast    {', '.join(head.targets)}; 1..{head.horizon} steps ahead; {kind}; learns {residual}")
    if manifest.classes is not None:
        labels = manifest.classes.labels
        shown = ", ".join(label if label.isprintable() and label.strip() else repr(label) for label in labels)
        lines.append(f"classes     {shown} ({manifest.classes.activation})")
        if manifest.classes.activation == "logistic":
            lines.append(
                f"            one logit: its sigmoid is the probability of {labels[1]}, the rest is {labels[0]}"
            )
    return lines


def _parameter_lines(bundle: Bundle, explained: bool) -> list[str]:
    """The parameters of each layer, and the parameters of other cells of the same size."""
    rows = parameter_rows(bundle)
    cells = [[r["layer"], r["cell"], r["formula"], f"{r['by_formula']:,}", f"{r['by_count']:,}"] for r in rows]
    total = [f"{sum(r[key] for r in rows):,}" for key in ("by_formula", "by_count")]
    layers = explain(bundle)
    return [
        *table([["part", "cell", "parameters", "by formula", "by count"], *cells, ["all", "", "", *total]]),
        "",
        *comparison_lines(layers),
        "",
        *(
            explanation_lines(layers)
            if explained
            else ["see the equations of the cells and what each gate does with --explain"]
        ),
    ]


def _bound(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _scores(bundle: Bundle) -> list[str]:
    """The scores on the test data that training stored."""
    scores = bundle.manifest.scores
    if not scores:
        return ["scores: none stored"]
    lines: list[str] = ["scores on the test data, streamed:"]
    forecast, classes = scores.get("forecast"), scores.get("classes")
    try:
        if forecast:
            lines += ["", *forecast_lines(_with_nan(forecast, ForecastScores))]
        if classes:
            lines += ["", *class_lines(_with_nan(classes, ClassScores))]
        return [*lines, "", *msgspec.convert(scores.get("verdict", []), list[str])]
    except (msgspec.ValidationError, LookupError, ValueError):
        return ["scores: stored in a form that this version does not read"]


def _with_nan(stored: object, kind: Any) -> Any:
    """Convert stored scores, in which null stands for NaN."""

    def fill(value: object) -> object:
        if isinstance(value, dict):
            return {key: fill(item) if key != "season_steps" else item for key, item in value.items()}
        if isinstance(value, list):
            return [fill(item) for item in value]
        return float("nan") if value is None else value

    return msgspec.convert(fill(stored), kind)


def _parity(bundle: Bundle) -> list[str]:
    rows = [["parity with Keras", "samples", "largest difference", "allowed"]]
    for entry in bundle.manifest.parity:
        rows.append([entry.engine, f"{entry.samples:,}", f"{entry.max_difference:.2e}", f"{entry.tolerance:.0e}"])
    return table(rows) if len(rows) > 1 else ["parity with Keras: none stored"]


def _files(bundle: Bundle) -> list[str]:
    files = sorted(bundle.manifest.files.items())
    rows = [[name, f"{entry.bytes:,}", entry.sha256] for name, entry in files]
    return [*table([["file", "bytes", "SHA-256"], *rows]), "all files match the manifest"]


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
