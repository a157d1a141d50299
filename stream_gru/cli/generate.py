"""``stream-gru generate``: generate samples autoregressively, each output being the next input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from stream_gru.cli.group import ENGINE, FiniteRange
from stream_gru.connectors.datasets import read_files, recording_format, recording_text, write_recording
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.sources.files import expand, shared_stream
from stream_gru.core.concatenate import concatenate
from stream_gru.core.types import SampleBatch
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.pipeline.generate import Generated, copies, prompt
from stream_gru.pipeline.generate import generate as generate_samples
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.sampling import feedback_kind


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--steps", type=click.IntRange(1, 10_000_000), required=True, metavar="N", help="Generate N samples per stream."
)
@click.option("--primer", "files", multiple=True, metavar="FILE", help="Continue this recording (repeatable).")
@click.option("--prompt", "words", metavar="TEXT", help="Continue this text, whose characters are labels of the model.")
@click.option(
    "--streams",
    "count",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Generate N streams, or N continuations of one.  [default: 1, or those of the primer]",
)
@click.option(
    "--temperature",
    type=FiniteRange(min=0),
    default=1.0,
    show_default=True,
    metavar="T",
    help="Draw classes at temperature T; 0 takes the likeliest.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Seed the random draws."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write to this .csv or .jsonl file (also .gz).")
@click.option("--with-primer", is_flag=True, help="Write the primer before the generated samples.")
@click.option("--text", is_flag=True, help="Print the labels of each stream as text instead of samples.")
@ENGINE
@click.option("-q", "--quiet", is_flag=True, help="Do not print the summary.")
def generate(
    bundle: Path,
    steps: int,
    files: tuple[str, ...],
    words: str | None,
    count: int | None,
    temperature: float,
    seed: int,
    out: Path | None,
    with_primer: bool,
    text: bool,
    engine: str,
    quiet: bool,
) -> None:
    """Generate samples autoregressively with BUNDLE.

    The model needs a class head over the categories of its only channel, from which classes are drawn, or a forecast of
    all channels, of which the first step is used.  The output is a recording for `replay` and `evaluate`: give them the
    primer too, or write it with --with-primer.
    """
    if files and words is not None:
        raise click.UsageError("--primer and --prompt exclude each other")
    if with_primer and not files and words is None:
        raise click.UsageError("--with-primer needs --primer or --prompt")
    model = load_bundle(bundle)
    kind = feedback_kind(model.manifest)
    if text and kind != "categories":
        raise click.UsageError("--text needs a model of categories")
    fields = Fields.of(model.manifest.input, model.manifest.channels)
    if out is not None:
        recording_format(out, fields)
    primer, streams = _primer(model, fields, files, words, count)
    pipeline = Pipeline(model, engine, max_streams=1_000_000)
    generated = generate_samples(pipeline, primer, steps, streams=streams, temperature=temperature, seed=seed)
    samples = generated.samples
    if with_primer and primer is not None:
        samples = concatenate([primer, samples], len(model.manifest.channels))
    if out is not None:
        write_recording(out, samples, fields)
    if text and model.manifest.classes is not None:
        click.echo(joined_labels(samples, model.manifest.classes.labels))
    elif out is None:
        trained = model.manifest.input.format
        click.echo(recording_text(samples, fields, "jsonl" if trained == "jsonl" else "csv"), nl=False)
    if not quiet:
        for line in _summary(generated, steps):
            click.echo(line, err=True)


def joined_labels(samples: SampleBatch, labels: Sequence[str]) -> str:
    """The labels of each stream as one text, separated by spaces unless all labels have one character.

    The texts of several streams have the name of the stream as heading.  Samples without a value are skipped.
    """
    separator = "" if all(len(label) == 1 for label in labels) else " "
    texts = []
    for index in np.unique(samples.stream_index):
        codes = samples.values[samples.stream_index == index, 0]
        text = separator.join(labels[int(code)] for code in codes if np.isfinite(code) and 0 <= code < len(labels))
        texts.append((samples.stream_names[index], text))
    return texts[0][1] if len(texts) == 1 else "\n\n".join(f"== {name} ==\n{text}" for name, text in texts)


def _primer(
    model: Bundle, fields: Fields, files: Sequence[str], words: str | None, count: int | None
) -> tuple[SampleBatch | None, list[str] | None]:
    """The samples to continue, and the names of new streams; one of the two is None."""
    names = [f"generated-{number}" for number in range(1, (count or 1) + 1)]
    if words is not None:
        return prompt(model.manifest, words, names), None
    if not files:
        return None, names
    for line in shared_stream(expand(files), fields.input.stream):
        click.echo(line, err=True)
    primer = read_files(files, fields)
    if count is not None:
        primer = copies(
            primer, [f"{primer.stream_names[primer.stream_index[0]][:120]}-{n}" for n in range(1, count + 1)]
        )
    return primer, None


def _summary(generated: Generated, steps: int) -> list[str]:
    streams = generated.samples.stream_names
    lines = [f"generated {steps:,} samples for each of {len(streams):,} streams"]
    if generated.clipped:
        lines.append(f"{generated.clipped:,} forecasts were outside the range of their channel and were clipped")
    if generated.log_probability is not None:
        shown = zip(streams[:10], generated.log_probability.tolist(), strict=False)
        lines += [f"log-probability of {name}: {total:.2f}, {total / steps:.4f} per sample" for name, total in shown]
    return lines
