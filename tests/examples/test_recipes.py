"""Recipes: their configurations and recordings, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.cli.group import cli
from stream_gru.config import parse_config
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError, DataError
from stream_gru.examples.recipes import imdb, mnist, sine, vowels
from stream_gru.examples.recipes.recipe import RECIPES, load_recipe, merged, read_recipe
from stream_gru.examples.recipes.sequences import Sequences, find_arrays, label_at_end, write_recording
from tests.support.small_datasets import write_digits, write_reviews

tomli_w = pytest.importorskip("tomli_w")
PAGE_LINES = 75


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("quick", [False, True])
def test_every_variant_is_a_training_configuration(name: str, best: bool, quick: bool) -> None:
    """Without its own table, a recipe is a valid training configuration."""
    variant = load_recipe(name).variant(best=best, quick=quick)
    config = parse_config(tomli_w.dumps(variant.document), f"{name}.toml", CATALOG)
    assert config.data is not None
    assert config.model is not None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_page(name: str) -> None:
    """A recipe fits on one page."""
    assert len(load_recipe(name).text.splitlines()) <= PAGE_LINES


def test_the_list_names_every_recipe() -> None:
    """``recipe list`` prints one line for each recipe, ``recipe show`` the file unchanged."""
    runner = CliRunner()
    listed = runner.invoke(cli, ["recipe", "list"]).output.splitlines()
    assert [line.split()[0] for line in listed] == list(RECIPES)
    assert runner.invoke(cli, ["recipe", "show", "sine"]).output == load_recipe("sine").text


def test_an_unknown_recipe_is_an_error_that_lists_the_known_ones() -> None:
    """The error names all recipes."""
    with pytest.raises(ConfigError, match=r"expected one of mnist-gru, .*, got 'mnist'"):
        load_recipe("mnist")


def test_a_variant_changes_only_what_it_names() -> None:
    """Tables are merged key by key; lists and values are replaced; the original stays."""
    document = {"a": {"x": 1, "y": [1, 2]}, "b": 3}
    assert merged(document, {"a": {"y": [3]}, "c": {"z": 4}}) == {"a": {"x": 1, "y": [3]}, "b": 3, "c": {"z": 4}}
    assert document == {"a": {"x": 1, "y": [1, 2]}, "b": 3}


def test_a_recipe_without_its_table_is_an_error() -> None:
    """A recipe must name the source of its recordings."""
    with pytest.raises(KeyError):
        read_recipe("odd", "[data]\nfiles = []\n")


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    devices=st.integers(1, 5),
)
def test_a_recording_holds_every_sequence_whole_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], devices: int
) -> None:
    """Each device sends its sequences one after another, one sample per period, and no sample is lost."""
    pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("recording")
    length = np.array(lengths)
    values = np.arange(length.sum(), dtype=np.float32)[:, None]
    sequences = Sequences(values, length, label_at_end(np.arange(len(length), dtype=np.int32) % 2, length))
    devices = min(devices, len(length))
    write_recording(folder / "part.parquet", "part", sequences, ["x"], ["even", "odd"], 0.5, devices)
    config = parse_config(
        '[input]\ntime_unit = "s"\nstream = "stream"\nepisode = "sequence"\nlabel = "label"\n'
        '[[channel]]\nname = "x"\n[data]\nfiles = ["x"]\nperiod_s = 0.5\n',
        "c.toml",
        CATALOG,
    )
    from stream_gru.connectors.decoders.field_map import Fields

    batch = read_files([str(folder / "part.parquet")], Fields.of(config.input, config.channel))
    assert batch.label is not None
    for device in range(devices):
        mine = batch.stream_index == batch.stream_names.index(f"part-{device:03}")
        starts = np.cumsum(length) - length
        wanted = np.concatenate(
            [np.arange(starts[n], starts[n] + length[n]) for n in range(device, len(length), devices)]
        )
        np.testing.assert_array_equal(batch.values[mine, 0], wanted)
        np.testing.assert_array_equal(np.diff(batch.time_ns[mine]), 500_000_000)
    labelled = batch.values[batch.label >= 0, 0]
    assert sorted(labelled) == (np.cumsum(length) - 1).tolist()


def test_validation_digits_come_from_the_training_set(tmp_path: Path) -> None:
    """Validation is the end of the training set; the test part is the test set, all of it."""
    path = write_digits(tmp_path / "mnist.npz", train=50, test=20)
    parts = mnist.recordings(mnist.Options(validation=10), path)
    assert [len(parts[name].length) for name in ("train", "validation", "test")] == [40, 10, 20]
    with np.load(path) as file:
        pixels = file["x_train"][40:].reshape(-1, 28)
    np.testing.assert_allclose(parts["validation"].values, pixels / 255, rtol=1e-6)
    assert parts["test"].label is not None
    assert (parts["test"].label >= 0).sum() == 20


def test_reviews_are_numbered_as_keras_does(tmp_path: Path) -> None:
    """0 pads in front, 1 begins, 2 is a word outside the vocabulary, rank r is r + 3; the end of a review is kept."""
    flat = np.array([1, 5, 9000, 2, 3], np.int32)
    arrays = {f"x_{part}_flat": flat for part in ("train", "test")}
    arrays |= {f"x_{part}_len": np.array([3, 2]) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.array([1, 0]) for part in ("train", "test")}
    np.savez(tmp_path / "imdb.npz", allow_pickle=False, **arrays)
    options = imdb.Options(words=9000, length=5, validation=1)
    parts = imdb.recordings(options, tmp_path)
    reviews = {tuple(row) for row in parts["test"].values.reshape(-1, 5).tolist()}
    assert reviews == {(0, 1, 4, 8, 2), (0, 0, 1, 5, 6)}
    cut = imdb.recordings(imdb.Options(words=9000, length=2, pad=False, validation=1), tmp_path)["test"]
    assert {tuple(row) for row in cut.values.reshape(-1, 2).tolist()} == {(8, 2), (5, 6)}


def test_the_label_of_every_word_is_that_of_its_review(tmp_path: Path) -> None:
    """With ``every`` all words have the label, without it only the last one."""
    path = write_reviews(tmp_path / "imdb.npz", train=20, test=10)
    last = imdb.recordings(imdb.Options(validation=4), path)["train"]
    every = imdb.recordings(imdb.Options(validation=4, every=True), path)["train"]
    assert last.label is not None
    assert every.label is not None
    ends = np.cumsum(last.length) - 1
    np.testing.assert_array_equal(last.label[ends], every.label[ends])
    assert (last.label >= 0).sum() == len(last.length)
    np.testing.assert_array_equal(every.label, np.repeat(every.label[ends], every.length))


def test_local_arrays_are_found_by_file_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, its folder or a folder of data sets is accepted; the environment variable comes last."""
    monkeypatch.delenv("STREAM_GRU_DATA", raising=False)
    (tmp_path / "mnist").mkdir()
    path = write_digits(tmp_path / "mnist" / "mnist.npz", train=5, test=5)
    for data_path in (path, path.parent, tmp_path):
        found = find_arrays("mnist", data_path)
        assert found is not None
        assert "x_train" in found
    assert find_arrays("mnist", None) is None
    monkeypatch.setenv("STREAM_GRU_DATA", str(tmp_path))
    assert find_arrays("mnist", None) is not None


def test_a_file_that_needs_pickle_is_rejected(tmp_path: Path) -> None:
    """Loading pickled lists can run code: the error names the alternative."""
    np.savez(tmp_path / "imdb.npz", x_train=np.array([[1, 2], [3]], object))
    with pytest.raises(DataError, match=r"pickled lists, .*: omit --data"):
        find_arrays("imdb", tmp_path)
    with pytest.raises(DataError, match=r"expected mnist\.npz, or a folder with it"):
        find_arrays("mnist", tmp_path)


def test_the_bound_falls_with_the_window() -> None:
    """The bound of a window falls with its length, towards the variance of the noise, which no predictor beats."""
    bounds = [sine.window_bound(window, 3) for window in (2, 10, 200)]
    assert bounds[0] > bounds[1] > bounds[2] > sine.NOISE**2
    assert bounds[2] < 1.02 * sine.NOISE**2


def test_the_bound_of_a_window_is_no_higher_than_a_simple_predictor() -> None:
    """A straight line through ten samples is a predictor too, so the best one cannot be worse."""
    rng, step = np.random.default_rng(3), sine.RATE * sine.PERIOD_S
    phase = rng.uniform(0, 2 * np.pi, 20_000)
    seen = np.sin(phase[:, None] + step * np.arange(-9, 1)) + sine.NOISE * rng.normal(size=(len(phase), 10))
    mean = seen.mean(axis=1)
    assert sine.window_bound(10, 3) < sine.NOISE**2 + float(np.mean((mean - np.sin(phase + 3 * step)) ** 2))


def test_the_entropy_of_the_chain_is_that_of_a_long_text() -> None:
    """Mean of -log p over a text drawn from the chain, within four standard errors."""
    text = vowels.draw(50, 4000, np.random.default_rng(0))
    surprise = -np.log(vowels.CHAIN[text[:, :-1], text[:, 1:]]).reshape(-1)
    assert abs(surprise.mean() - vowels.entropy()) < 4 * surprise.std() / np.sqrt(surprise.size)


def test_chi_squared_separates_another_chain() -> None:
    """The chain's own text lies near its degrees of freedom, a uniform one far above."""
    rng = np.random.default_rng(0)
    own, freedom = vowels.chi_squared(vowels.transitions(vowels.draw(20, 500, rng)))
    other, _ = vowels.chi_squared(vowels.transitions(rng.integers(0, 5, (20, 500))))
    assert own < 2.5 * freedom < 25 * freedom < other


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_archive_is_rejected(content: bytes, tmp_path: Path) -> None:
    """Text, an empty file, a truncated archive: the error names the path."""
    (tmp_path / "mnist.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"mnist\.npz: expected plain arrays"):
        find_arrays("mnist", tmp_path)


def test_data_of_another_shape_is_rejected(tmp_path: Path) -> None:
    """Images must be 28 x 28 and digits 0..9; lengths must add up to the words; training images must suffice."""
    path = write_digits(tmp_path / "mnist.npz", train=20, test=10)
    with pytest.raises(DataError, match="more than 5000 training images"):
        mnist.recordings(mnist.Options(), path)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, allow_pickle=False, **{**arrays, "y_test": arrays["y_test"] + np.uint8(10)})
    with pytest.raises(DataError, match=r"mnist\.npz: test: expected images"):
        mnist.recordings(mnist.Options(validation=5), path)
    path = write_reviews(tmp_path / "imdb.npz", train=20, test=10)
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, allow_pickle=False, **{**arrays, "x_train_flat": arrays["x_train_flat"][:-1]})
    with pytest.raises(DataError, match=r"imdb\.npz: train: expected concatenated words"):
        imdb.recordings(imdb.Options(validation=5), path)
