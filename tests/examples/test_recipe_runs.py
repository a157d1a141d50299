"""Recipes run from the command line, on small substitutes for the public data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.small_datasets import write_digits, write_reviews

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.train


@pytest.fixture(autouse=True)
def short_parity_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare engines on fewer steps; predictions of the whole test part are compared anyway."""
    monkeypatch.setattr("stream_gru.training.train._PARITY_STEPS", 1024)


FOR_DATA = {"mnist": write_digits, "imdb": write_reviews}


def run_recipe(name: str, folder: Path, *options: str) -> Result:
    """``stream-gru recipe run`` in a folder of the test."""
    from stream_gru.cli.group import cli

    arguments = ["recipe", "run", name, "--quick", "--out", str(folder / "out"), *options]
    data = name.partition("-")[0]
    if data in FOR_DATA:
        FOR_DATA[data](folder / f"{data}.npz")
        arguments += ["--data", str(folder)]
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def number(pattern: str, text: str) -> float:
    """The number that a pattern finds."""
    found = re.search(pattern, text)
    assert found is not None, text
    return float(found[1].replace(",", ""))


@pytest.mark.parametrize("name", ["mnist-gru", "mnist-functional", "mnist-rnn", "imdb-gru", "imdb-long"])
def test_streamed_digits_and_reviews_are_classified_as_by_keras(name: str, tmp_path: Path) -> None:
    """The model learns a substitute, and streamed predictions equal those of Keras."""
    done = run_recipe(name, tmp_path)
    assert done.exit_code == 0, done.stderr
    streamed = number(r"streamed\s+test accuracy ([\d.]+)%", done.stdout)
    assert streamed == number(r"Keras\s+test accuracy ([\d.]+)%", done.stdout)
    assert number(r"difference\s+(\S+) at most", done.stdout) < 1e-4
    assert streamed > (60 if name.startswith("imdb") else 50)
    assert (tmp_path / "out" / "bundle" / "report.html").exists()


def test_vowels_are_predicted_and_generated(tmp_path: Path) -> None:
    """The cross-entropy is near the chain's entropy, and generated text roughly follows the chain."""
    done = run_recipe("vowels", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert number(r"entropy of the chain [\d.]+; ([+-][\d.]+)%", done.stdout) < 5
    assert number(r"difference\s+(\S+) at most", done.stdout) < 1e-4
    assert number(r"chi-squared ([\d.]+) of 20", done.stdout) < 200
    assert len(re.findall(r"^  after '\w{3}': a ", done.stdout, re.MULTILINE)) == 2


def test_the_files_of_a_recipe_train_the_same_model(tmp_path: Path) -> None:
    """``stream-gru train`` with its configuration and recordings gives the same model."""
    from stream_gru.cli.group import cli
    from stream_gru.model.bundle import load_bundle

    done = run_recipe("sine", tmp_path)
    assert done.exit_code == 0, done.stderr
    assert number(r"difference\s+(\S+) at most", done.stdout) < 1e-4
    assert number(r"predictor from 10 samples: [\d.]+; this model \+?(-?[\d.]+)%", done.stdout) < 60
    out = tmp_path / "out"
    again = CliRunner().invoke(cli, ["train", str(out / "recipe.toml"), "--out", str(tmp_path / "again.bundle")])
    assert again.exit_code == 0, again.stderr
    first, second = load_bundle(out / "bundle"), load_bundle(tmp_path / "again.bundle")
    assert first.manifest.model_id == second.manifest.model_id


def test_a_folder_of_other_files_is_not_written_to(tmp_path: Path) -> None:
    """Recordings are not written beside other files."""
    from stream_gru.core.errors import BundleError

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match="expected a new folder or one of the same recipe"):
        run_recipe("sine", tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_folder_of_another_variant_is_not_written_to(tmp_path: Path) -> None:
    """A quick run does not replace the result of a long one."""
    from stream_gru.core.errors import BundleError

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.toml").write_text("# another\n")
    with pytest.raises(BundleError, match="or one of the same recipe"):
        run_recipe("sine", tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recipe.toml"]


def test_a_recipe_that_generates_its_data_rejects_the_option(tmp_path: Path) -> None:
    """An option without effect is a usage error."""
    done = run_recipe("sine", tmp_path, "--data", str(tmp_path))
    assert done.exit_code == 2
    assert "--data: recipe sine generates its data" in done.stderr


def test_only_mnist_gru_is_compared(tmp_path: Path) -> None:
    """The error of ``--compare`` names the recipe that it needs."""
    done = run_recipe("sine", tmp_path, "--compare")
    assert done.exit_code == 2
    assert "--compare needs the recipe mnist-gru" in done.stderr


def test_the_comparison_measures_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way is trained and streamed in processes of its own; its row has time, memory and accuracy."""
    from stream_gru.examples.recipes import run as compare

    (way,) = [way for way in compare.WAYS if "never reset" in way[0]]
    monkeypatch.setattr(compare, "WAYS", [way])
    monkeypatch.setattr(compare, "EPOCHS", 1)
    done = run_recipe("mnist-gru", tmp_path, "--compare")
    assert done.exit_code == 0, done.stderr
    assert re.search(rf"^{re.escape(way[0])}\s+[\d.]+ s\s+[\d,]+ MiB\s.*\d%$", done.stdout, re.MULTILINE), done.stdout


def test_every_way_of_the_comparison_is_a_training_configuration() -> None:
    """Unrolled or not, windowed or stateful, three cells: each is a valid configuration."""
    import tomli_w

    from stream_gru.config import parse_config
    from stream_gru.connectors.registry import CATALOG
    from stream_gru.examples.recipes.recipe import load_recipe, merged
    from stream_gru.examples.recipes.run import WAYS

    document = load_recipe("mnist-gru").variant().document
    for name, changes in WAYS:
        config = parse_config(tomli_w.dumps(merged(document, changes)), name, CATALOG)
        assert config.model is not None
        assert config.training.regime == ("stateful" if "stateful" in name else "windowed"), name
        assert config.model.layer[0].unroll == (", unrolled" in name), name
