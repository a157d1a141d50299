"""Generation: it equals pushing the generated samples by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.datasets import read_files, recording_text, write_recording
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import ConfigError, DataError
from stream_gru.core.timestamps import LIMIT_NS
from stream_gru.core.types import NS_PER_S, SampleBatch
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import Classes
from stream_gru.pipeline.generate import copies, generate, prompt
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.sampling import draw
from tests.support.batches import START_NS, batch, rows_of
from tests.support.models import make_bundle
from tests.support.pipelines import toy_pipeline


def text_bundle(**options: Any) -> Bundle:
    """One channel of five categories, a class for each, which are characters; one of them is a line end."""
    made = make_bundle(channels=0, categories=(5,), labels=5, horizon=0, **options)
    return made.with_manifest(classes=Classes(labels=list("abc \n"), activation="softmax"))


def forecast_bundle(**options: Any) -> Bundle:
    """Three channels, all of them targets (in another order), three steps ahead."""
    return make_bundle(**{"channels": 3, "targets": 3, "horizon": 3, "labels": 0, **options})


def text_primer(streams: Sequence[str] = ("p",), steps: int = 6) -> SampleBatch:
    """Categories of several streams, one second apart."""
    rng = np.random.default_rng(3)
    names = [name for _ in range(steps) for name in streams]
    times = [float(step) for step in range(steps) for _ in streams]
    return batch(names, times, rng.integers(0, 5, (len(names), 1)).tolist())


def wave(streams: Sequence[str] = ("p",), steps: int = 6) -> SampleBatch:
    """Three quantities of several streams, one second apart."""
    names = [name for _ in range(steps) for name in streams]
    times = [float(step) for step in range(steps) for _ in streams]
    return batch(names, times, np.random.default_rng(4).normal(size=(len(names), 3)).tolist())


def stream_values(samples: SampleBatch, name: str) -> list[list[float]]:
    """The values of one stream, in order."""
    return samples.values[samples.stream_index == samples.stream_names.index(name)].tolist()


def test_categories_equal_a_push_of_the_same_values_by_hand() -> None:
    """The most likely category after each pushed sample is the next generated one."""
    bundle = text_bundle()
    made = generate(Pipeline(bundle, "numpy"), text_primer(), 20, temperature=0)
    by_hand = Pipeline(bundle, "numpy")
    answers = by_hand.process(text_primer())
    code, time_ns = int(answers.predicted_class[-1]), int(answers.time_ns[-1])
    for index, generated in enumerate(made.samples.values[:, 0].tolist()):
        assert generated == code
        time_ns += NS_PER_S
        assert made.samples.time_ns[index] == time_ns
        prediction = by_hand.push("p", time_ns / NS_PER_S, [generated])
        assert prediction.probabilities is not None
        code = int(np.argmax(list(prediction.probabilities.values())))


@pytest.mark.parametrize("quantiles", [(), (0.1, 0.5, 0.9)])
def test_forecasts_equal_a_push_of_the_same_values_by_hand(quantiles: Sequence[float]) -> None:
    """The generated sample is the (median) forecast one step ahead, channel by channel."""
    bundle = forecast_bundle(quantiles=quantiles, calendar=1)
    made = generate(Pipeline(bundle, "numpy"), wave(), 10)
    by_hand = Pipeline(bundle, "numpy")
    by_hand.process(wave().take(slice(0, -1)))
    values, time_ns = wave().values[-1].tolist(), int(wave().time_ns[-1])
    for index, generated in enumerate(made.samples.values.tolist()):
        prediction = by_hand.push("p", (time_ns + index * NS_PER_S) / NS_PER_S, values)
        assert prediction.forecast is not None
        values = [float(prediction.forecast[f"c{c}"][0]) for c in range(3)]
        assert generated == pytest.approx(values, rel=1e-6)
    assert made.probabilities is None
    assert made.log_probability is None


def test_the_state_is_that_after_the_primer_and_not_the_initial_one() -> None:
    """Two primers with the same end and different starts are continued differently."""
    bundle = forecast_bundle()
    whole = generate(Pipeline(bundle, "numpy"), wave(), 5).samples.values
    ending = generate(Pipeline(bundle, "numpy"), wave().take(slice(5, None)), 5).samples.values
    assert not np.allclose(whole, ending)
    pipeline = Pipeline(bundle, "numpy")
    pipeline.process(wave().take(slice(0, 5)))
    carried = generate(pipeline, wave().take(slice(5, None)), 5).samples.values
    assert np.allclose(whole, carried, rtol=1e-6)


def test_the_same_seed_draws_the_same_and_another_one_does_not() -> None:
    """Equal seeds give equal samples, another seed gives others."""
    bundle = text_bundle()
    one, same, other = (generate(Pipeline(bundle, "numpy"), text_primer(), 60, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.samples.values, same.samples.values)
    assert np.array_equal(one.log_probability, same.log_probability)  # type: ignore[arg-type]
    assert not np.array_equal(one.samples.values, other.samples.values)


def test_fewer_steps_are_the_beginning_of_more() -> None:
    """The generated samples do not depend on their number."""
    bundle = text_bundle()
    short, long = (generate(Pipeline(bundle, "numpy"), text_primer(), n).samples.values for n in (7, 30))
    assert np.array_equal(short, long[:7])


@pytest.mark.parametrize("kind", ["categories", "forecast"])
def test_a_stream_alone_generates_what_it_generates_among_others(kind: str) -> None:
    """Streams do not influence each other, bit for bit on an exact engine."""
    bundle, primer = (text_bundle(), text_primer) if kind == "categories" else (forecast_bundle(), wave)
    together = primer(("a", "b", "c"))
    all_three = generate(toy_pipeline(bundle), together, 8)
    for index, name in enumerate("abc"):
        alone = generate(toy_pipeline(bundle), together.take(together.stream_index == index), 8)
        assert alone.samples.stream_names == (name,)
        assert stream_values(alone.samples, name) == stream_values(all_three.samples, name)
        chosen = generate(toy_pipeline(bundle), together, 8, streams=[name])
        assert stream_values(chosen.samples, name) == stream_values(all_three.samples, name)


def test_only_the_chosen_streams_move() -> None:
    """Streams of the primer that are not chosen are not applied."""
    pipeline = toy_pipeline(text_bundle())
    generate(pipeline, text_primer(("a", "b")), 3, streams=["b"])
    assert pipeline.streams == ("b",)


def test_streams_without_a_primer_start_with_a_uniform_category() -> None:
    """Over many streams all first categories occur about equally often, at any temperature."""
    names = [f"s{n}" for n in range(500)]
    made = generate(Pipeline(text_bundle(), "numpy"), None, 2, streams=names, temperature=0)
    first = made.samples.values[:500, 0].astype(int)
    assert np.bincount(first, minlength=5).min() > 70
    assert made.probabilities is not None
    assert np.allclose(made.probabilities[0], 0.2)
    assert made.samples.time_ns[[0, 500]].tolist() == [0, NS_PER_S]


def test_probabilities_are_those_of_the_model() -> None:
    """A replay of the generated samples gives each drawn category its reported probability."""
    bundle = text_bundle()
    made = generate(Pipeline(bundle, "numpy"), text_primer(("a", "b")), 12, temperature=2.0)
    out = Pipeline(bundle, "numpy").process(concatenate([text_primer(("a", "b")), made.samples], 1))
    assert out.probabilities is not None
    assert made.probabilities is not None
    codes = made.samples.values[:, 0].astype(int)
    given = out.probabilities[10:-2][np.arange(24), codes].reshape(12, 2)
    assert np.allclose(made.probabilities, given, rtol=1e-5)
    assert np.allclose(made.log_probability, np.log(given).sum(axis=0), rtol=1e-4)  # type: ignore[arg-type]


def test_a_label_is_the_category_that_follows() -> None:
    """So generated samples can be evaluated: the true class is the next category."""
    made = generate(Pipeline(text_bundle(), "numpy"), text_primer(("a", "b")), 4).samples
    assert made.label is not None
    assert made.label.tolist() == [*made.values[2:, 0].astype(int).tolist(), -1, -1]
    assert made.labels == ("a", "b", "c", " ", "\n")


def test_a_continuation_equals_one_generation() -> None:
    """The last sample, which is not applied yet, is the primer of the continuation."""
    bundle = forecast_bundle()
    whole = generate(toy_pipeline(bundle), wave(("a", "b")), 9).samples
    pipeline = toy_pipeline(bundle)
    begun = generate(pipeline, wave(("a", "b")), 4)
    more = generate(pipeline, begun.last, 5).samples
    assert np.array_equal(np.concatenate([begun.samples.values, more.values]), whole.values)
    assert np.array_equal(np.concatenate([begun.samples.time_ns, more.time_ns]), whole.time_ns)


def test_a_forecast_outside_its_range_is_clipped() -> None:
    """The pipeline would treat it as missing; the result counts them."""
    bundle = forecast_bundle()
    narrow = [msgspec.structs.replace(c, min=-1e-3, max=1e-3) for c in bundle.manifest.channels]
    primer = replace(wave(), values=np.zeros((6, 3), np.float32))
    made = generate(Pipeline(bundle.with_manifest(channels=narrow), "numpy"), primer, 5)
    assert np.abs(made.samples.values).max() == np.float32(1e-3)
    assert made.clipped > 0
    assert generate(Pipeline(bundle, "numpy"), primer, 5).clipped == 0


def test_a_windowed_model_is_reset_every_window() -> None:
    """The state is reset every W steps, also when the outputs are the inputs."""
    bundle = forecast_bundle()
    windowed = bundle.with_manifest(regime="windowed", window=4)
    made = generate(Pipeline(windowed, "numpy"), wave(steps=4), 5).samples
    fresh = Pipeline(bundle, "numpy").process(made.take(slice(0, 4)))
    assert fresh.forecast is not None
    assert np.allclose(made.values[4], fresh.forecast[3, ::-1, 0], rtol=1e-5)


def test_copies_of_one_primer_are_continued_differently() -> None:
    """Each copy is a stream with its own draws."""
    made = generate(Pipeline(text_bundle(), "numpy"), copies(text_primer(), ["x", "y"]), 40).samples
    assert stream_values(made, "x") != stream_values(made, "y")
    with pytest.raises(ConfigError, match="expected a primer of one stream to copy, got a, b"):
        copies(text_primer(("a", "b")), ["x"])


def test_a_prompt_is_a_primer_of_characters() -> None:
    """Characters become the categories whose labels they are."""
    primer = prompt(text_bundle(period_s=0.5).manifest, "ca\n", ["x", "y"])
    assert primer.values[:, 0].tolist() == [2, 0, 4, 2, 0, 4]
    assert primer.time_ns[:3].tolist() == [0, NS_PER_S // 2, NS_PER_S]
    for text in ("", "abz"):
        with pytest.raises(ConfigError, match="prompt: expected characters that are labels of the model"):
            prompt(text_bundle().manifest, text, ["x"])
    with pytest.raises(ConfigError, match="prompt: expected a model of categories"):
        prompt(forecast_bundle().manifest, "a", ["x"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": 2}, "got no forecast of c2"),
        ({"horizon": 0, "labels": 3}, "got no forecast head"),
        ({"categories": (4,)}, "got 4 channels, of which categorical: k0"),
        ({"channels": 0, "targets": 0, "categories": (4,), "labels": 3}, "got 4 categories and 3 labels"),
        ({"channels": 0, "targets": 0, "categories": (4, 4), "labels": 4}, "categorical: k0, k1"),
        (
            {"channels": 0, "targets": 0, "categories": (4,), "labels": 4, "class_activation": "sigmoid"},
            "got independent classes",
        ),
    ],
)
def test_models_whose_outputs_cannot_be_inputs_are_rejected(options: dict[str, Any], words: str) -> None:
    """Every other model is an error that names what is missing."""
    pipeline = Pipeline(forecast_bundle(**options), "numpy")
    with pytest.raises(ConfigError, match="generate: expected outputs that can be the next inputs") as caught:
        generate(pipeline, None, 1)
    assert words in str(caught.value)


def test_a_model_with_outputs_only_at_the_end_of_windows_is_rejected() -> None:
    """Nine of ten outputs of such a model were never trained and cannot be next inputs."""
    windowed = text_bundle().with_manifest(regime="windowed", window=10, warm_up=9)
    with pytest.raises(ConfigError, match="got outputs only at the end of each window of 10 steps"):
        generate(Pipeline(windowed, "numpy"), None, 3)
    every = windowed.with_manifest(warm_up=0)
    assert len(generate(Pipeline(every, "numpy"), None, 3).samples) == 3


def test_two_categories_can_share_one_logit() -> None:
    """A logistic head gives the probabilities of both labels, which are drawn the same way as others."""
    bundle = make_bundle(channels=0, categories=(2,), labels=2, horizon=0, class_activation="logistic")
    made = generate(Pipeline(bundle, "numpy"), None, 200)
    assert set(made.samples.values[:, 0].tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"steps": LIMIT_NS // NS_PER_S}, "steps: expected event times before the year 2116"),
        ({"seed": -1}, "seed: expected a number of at least 0, got -1"),
        ({"temperature": -0.5}, "temperature: expected a finite number of at least 0, got -0.5"),
        ({"temperature": float("nan")}, "temperature: expected a finite number of at least 0, got nan"),
        ({"streams": ["x"]}, r"streams: expected some of the primer's, \['p'\], got \['x'\]"),
        ({"streams": []}, "streams: expected some of the primer's"),
        ({"primer": None, "streams": ["a", "a"]}, "streams: expected distinct names, at least one"),
        ({"primer": None, "streams": ["a\n"]}, "streams: expected 1 to 128 of the characters"),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments: dict[str, Any], words: str) -> None:
    """The message has the expected and the actual value."""
    given = {"primer": text_primer(), "steps": 1, **arguments}
    with pytest.raises(ConfigError, match=words):
        generate(Pipeline(text_bundle(), "numpy"), **given)


def test_arguments_that_forecasts_cannot_use_are_rejected() -> None:
    """A forecast needs a primer and draws nothing."""
    with pytest.raises(ConfigError, match="primer: expected samples to start from, got none"):
        generate(Pipeline(forecast_bundle(), "numpy"), None, 1)
    with pytest.raises(ConfigError, match="temperature: expected none for forecasts, where nothing is drawn, got 0"):
        generate(Pipeline(forecast_bundle(), "numpy"), wave(), 1, temperature=0)


def test_a_stream_with_a_state_is_not_started_again() -> None:
    """Its time would run backwards."""
    pipeline = Pipeline(text_bundle(), "numpy")
    generate(pipeline, None, 2, streams=["a"])
    with pytest.raises(ConfigError, match="streams: 'a' already has a state"):
        generate(pipeline, None, 2, streams=["a"])


def test_a_primer_must_be_applied_to_its_last_sample() -> None:
    """If its last samples were dropped there is no output to continue from."""
    for values in ([[9.0]] * 3, [[1.0], *[[9.0]] * 7]):
        primer = batch(["p"] * len(values), [float(n) for n in range(len(values))], values)
        with pytest.raises(DataError, match="stream 'p': expected its last sample to be applied, dropped"):
            generate(Pipeline(text_bundle(), "numpy"), primer, 1)


def test_outputs_that_are_not_finite_end_the_generation() -> None:
    """The error of a model that diverges names the stream."""
    with pytest.raises(DataError, match="stream 'p': expected finite outputs"):
        generate(toy_pipeline(forecast_bundle()), wave(), 2000)


def test_draws_follow_the_temperature() -> None:
    """Shares are p ** (1 / t), renormalised; 0 takes the most likely; probability 0 is never drawn."""
    p = np.tile(np.array([[0, 0.1, 0.2, 0.7, 0]], np.float32), (40_000, 1))
    uniform = (np.arange(40_000) + 0.5) / 40_000
    for temperature in (0.25, 1.0, 3.0):
        codes, given = draw(p, temperature, uniform)
        wanted = np.array([0.1, 0.2, 0.7]) ** (1 / temperature)
        assert np.allclose(np.bincount(codes, minlength=5)[1:4] / 40_000, wanted / wanted.sum(), atol=1e-3)
        assert np.allclose(given, p[0, codes])
    for temperature in (0, 1e-3, 5e-324):
        assert (draw(p, temperature, uniform)[0] == 3).all()
    assert draw(p[:2], 1.0, np.array([0.0, np.nextafter(1, 0)]))[0].tolist() == [1, 3]
    with pytest.raises(ValueError, match="expected finite probabilities"):
        draw(np.zeros((1, 3), np.float32), 1.0, uniform[:1])


UNITS = [("iso", "csv"), ("s", "csv"), ("ms", "jsonl"), ("ns", "jsonl.gz"), ("us", "csv.gz")]


@pytest.mark.parametrize(("unit", "suffix"), UNITS)
@pytest.mark.parametrize("kind", ["categories", "forecast"])
def test_a_written_file_replays_to_the_same_outputs(unit: str, suffix: str, kind: str, tmp_path: Path) -> None:
    """Samples are read back bit for bit, in the columns of the bundle's input, and give the same outputs."""
    bundle, primer = (text_bundle(), text_primer) if kind == "categories" else (forecast_bundle(), wave)
    line_end = kind == "categories" and "csv" in suffix
    wanted = InputConfig(time="at", time_unit=unit, stream="device", label="" if line_end else "next")  # type: ignore[arg-type]
    bundle = bundle.with_manifest(input=wanted)
    samples = concatenate([primer(("a", "b")), generate(toy_pipeline(bundle), primer(("a", "b")), 8).samples], 3)
    fields = Fields.of(wanted, bundle.manifest.channels)
    write_recording(tmp_path / f"x.{suffix}", samples, fields)
    read = read_files([str(tmp_path / f"x.{suffix}")], fields)
    assert np.array_equal(read.values, samples.values)
    assert np.array_equal(read.time_ns, samples.time_ns)
    outputs = [toy_pipeline(bundle).process(one) for one in (samples, read)]
    assert rows_of(outputs[:1]) == rows_of(outputs[1:])
    if kind == "categories" and not line_end:
        assert read.label is not None
        labels = bundle.manifest.classes.labels  # type: ignore[union-attr]
        assert read.label_codes(labels).tolist() == samples.label_codes(labels).tolist()


def test_flags_sequences_and_missing_values_are_written() -> None:
    """A written primer keeps its resets and boundaries; generated samples continue its episodes."""
    wanted = InputConfig(stream="s", reset="r", episode="q", device_seq="n")
    bundle = forecast_bundle().with_manifest(input=wanted)
    primer = wave().take(slice(0, 3))
    primer.values[1, 2] = np.nan
    primer = replace(
        primer, reset=np.array([False, True, False]), episode=np.array([7, 7, 9]), device_seq=np.array([1, 2, -1])
    )
    made = generate(Pipeline(bundle, "numpy"), primer, 1).samples
    assert made.episode is not None
    assert made.episode.tolist() == [9]
    text = recording_text(concatenate([primer, made], 3), Fields.of(wanted, bundle.manifest.channels), "csv")
    rows = [line.split(",") for line in text.splitlines()]
    assert rows[0] == ["time", "s", "c0", "c1", "c2", "r", "q", "n"]
    assert [row[5:] for row in rows[1:]] == [["0", "7", "1"], ["1", "7", "2"], ["0", "9", ""], ["0", "9", ""]]
    assert rows[2][4] == ""


@pytest.mark.parametrize(
    ("name", "stated", "stream", "words"),
    [
        ("x.dat", "auto", "s", "expected a name ending in"),
        ("x.parquet", "auto", "s", "expected a name ending in .csv or .jsonl"),
        ("x.csv", "jsonl", "s", "expected the format jsonl, which the bundle's input.format states"),
        ("x.jsonl", "auto", "", "expected one stream, as the bundle's records do not name theirs"),
        ("x.csv", "auto", "s", "column 'l': a line of CSV cannot hold a line end; write .jsonl"),
    ],
)
def test_files_that_could_not_be_read_back_are_not_written(
    name: str, stated: str, stream: str, words: str, tmp_path: Path
) -> None:
    """Each has its error, and nothing is written."""
    wanted = InputConfig(format=stated, stream=stream, label="l")  # type: ignore[arg-type]
    bundle = text_bundle().with_manifest(input=wanted)
    samples = prompt(bundle.manifest, "a\n", ["x", "y"])
    samples = replace(samples, label=samples.values[:, 0].astype(np.int32), labels=("a", "b", "c", " ", "\n"))
    with pytest.raises(ConfigError, match=words):
        write_recording(tmp_path / name, samples, Fields.of(wanted, bundle.manifest.channels))
    assert not list(tmp_path.iterdir())


def test_times_start_where_the_primer_ends() -> None:
    """One period after the last sample of each stream, also when streams have different times."""
    primer = batch(["a", "b", "a"], [0, 100.25, 1], [[0], [1], [2]])
    made = generate(Pipeline(text_bundle(), "numpy"), primer, 2).samples
    offsets = (made.time_ns - START_NS) / NS_PER_S
    assert offsets.tolist() == [2, 101.25, 3, 102.25]
