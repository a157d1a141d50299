"""``stream-gru generate``: the other commands accept what it prints and writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from stream_gru.config.train_schema import InputConfig
from stream_gru.model.bundle import write_bundle
from stream_gru.model.manifest import Classes
from tests.support.cli import Run
from tests.support.models import make_bundle
from tests.support.paths import BUNDLE

INPUT = InputConfig(time="at", stream="device", label="next")


@pytest.fixture
def characters(tmp_path: Path) -> Path:
    """A bundle of four characters."""
    made = make_bundle(channels=0, categories=(4,), labels=4, horizon=0, embedding=3)
    named = made.with_manifest(classes=Classes(labels=list("abc "), activation="softmax"), input=INPUT)
    return write_bundle(tmp_path / "characters.bundle", named.manifest, made.weights, {}).path


@pytest.fixture
def quantities(tmp_path: Path) -> Path:
    """A bundle that forecasts its two channels, and a recording of two devices for it."""
    made = make_bundle(channels=2, targets=2, horizon=3, labels=0, seed=1).with_manifest(input=INPUT)
    path = write_bundle(tmp_path / "quantities.bundle", made.manifest, made.weights, {}).path
    rows = [f"2026-03-01T00:00:{second:02d}Z,{name},{second / 7},{second % 3}" for second in range(20) for name in "xy"]
    (tmp_path / "primer.csv").write_text("\n".join(["at,device,c0,c1", *rows, ""]))
    return path


def test_the_text_equals_the_written_labels(characters: Path, tmp_path: Path, run: Run) -> None:
    """The printed text is that of the file, and the same seed gives the same bytes."""
    out = tmp_path / "g.csv"
    code, text, output = run("generate", characters, "--steps", 30, "--seed", 5, "--text", "--out", out)
    assert code == 0
    assert len(text.rstrip("\n")) == 30
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert "".join("abc "[int(row["k0"])] for row in rows) == text.rstrip("\n")
    assert "".join(row["next"] for row in rows) == text.rstrip("\n")[1:]
    assert "generated 30 samples for each of 1 streams\nlog-probability of generated-1: -" in output
    first = out.read_bytes()
    assert run("generate", characters, "--steps", 30, "--seed", 5, "--out", out, "-q") == (0, "", "")
    assert out.read_bytes() == first


def test_several_streams_continue_one_prompt(characters: Path, run: Run) -> None:
    """Each has its name as heading, and starts with the prompt if requested."""
    arguments = ("generate", characters, "--steps", 9, "--streams", 3, "--prompt", "ab c", "--text", "-q")
    assert run(*arguments)[1].count("== generated-") == 3
    texts = run(*arguments, "--with-primer")[1].split("\n\n")
    assert all(text.splitlines()[1].startswith("ab c") for text in texts)
    assert len({text.splitlines()[1] for text in texts}) == 3
    assert run(*arguments, "--temperature", 0)[1].count("== generated-") == 3


@pytest.mark.parametrize("suffix", ["csv", "jsonl.gz"])
def test_generated_files_can_be_replayed_and_evaluated(characters: Path, tmp_path: Path, suffix: str, run: Run) -> None:
    """Every sample is applied, and gets the probabilities it was drawn with."""
    out = tmp_path / f"g.{suffix}"
    assert run("generate", characters, "--steps", 50, "--streams", 2, "--out", out, "-q")[0] == 0
    code, replayed, output = run("replay", characters, out, "--json")
    assert (code, json.loads(output)["applied"]) == (0, 100)
    rows = [json.loads(line) for line in replayed.splitlines()]
    assert [row["reset"] for row in rows if row["reset"]] == ["first_sample"] * 2
    code, scores, _ = run("evaluate", characters, out, "--json")
    assert code == 0
    assert sum(map(sum, json.loads(scores)["classes"]["confusion"])) == 98


def test_forecasts_continue_a_recording(quantities: Path, tmp_path: Path, run: Run) -> None:
    """Primer and generated file, replayed one after the other, forecast the generated samples."""
    primer, out = tmp_path / "primer.csv", tmp_path / "g.csv"
    assert run("generate", quantities, "--primer", primer, "--steps", 5, "--out", out, "-q")[0] == 0
    _, replayed, _ = run("replay", quantities, primer, out, "-q")
    outputs = [json.loads(line) for line in replayed.splitlines()]
    assert len(outputs) == 50
    made = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["at"] for row in made[::2]] == [f"2026-03-01T00:00:{second}Z" for second in range(20, 25)]
    for output, came in zip(outputs[38:48], made, strict=True):
        assert output["stream"] == came["device"]
        assert [output["forecast"][name][0] for name in ("c0", "c1")] == pytest.approx(
            [float(came["c0"]), float(came["c1"])], rel=1e-5
        )
    both = tmp_path / "both.jsonl"
    assert run("generate", quantities, "--primer", primer, "--steps", 5, "--out", both, "--with-primer", "-q")[0] == 0
    assert run("replay", quantities, both, "-q")[1] == replayed


def test_samples_are_printed_without_an_output_file(quantities: Path, tmp_path: Path, run: Run) -> None:
    """Standard output holds a recording and nothing else."""
    code, text, output = run("generate", quantities, "--primer", tmp_path / "primer.csv", "--steps", 2)
    assert (code, text.splitlines()[0], len(text.splitlines())) == (0, "at,device,c0,c1", 5)
    assert output == "generated 2 samples for each of 2 streams\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "Invalid value for '--steps'"),
        (["--steps", "3", "--primer", "x.csv", "--prompt", "a"], "--primer and --prompt exclude each other"),
        (["--steps", "3", "--with-primer"], "--with-primer needs --primer or --prompt"),
        (["--steps", "3", "--prompt", "ax"], "prompt: expected characters that are labels of the model, got 'x'"),
        (["--steps", "3", "--temperature", "nan"], "nan is not a finite number"),
        (["--steps", "3", "--out", "x.parquet"], "x.parquet: expected a name ending in .csv or .jsonl"),
    ],
)
def test_invalid_options_are_rejected(characters: Path, arguments: list[str], words: str, run: Run) -> None:
    """The message names the option; exit code 2."""
    code, _, output = run("generate", characters, *arguments)
    assert code == 2
    assert words in output


def test_unsuitable_models_are_rejected(quantities: Path, tmp_path: Path, run: Run) -> None:
    """Exit code 2: partial forecasts, no primer, text of quantities, copies of several devices."""
    primer = tmp_path / "primer.csv"
    for arguments, words in (
        ((BUNDLE,), "got no forecast of current, vibration"),
        ((quantities,), "primer: expected samples to start from, got none"),
        ((quantities, "--text"), "--text needs a model of categories"),
        ((quantities, "--primer", primer, "--streams", 2), "expected a primer of one stream to copy"),
        ((quantities, "--primer", primer, "--temperature", 0), "temperature: expected none for forecasts"),
    ):
        code, _, output = run("generate", *arguments, "--steps", 1)
        assert code == 2
        assert words in output
    assert run("generate", quantities, "--primer", tmp_path / "nowhere.csv", "--steps", 1)[0] == 1
