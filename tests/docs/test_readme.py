"""Everything the README shows works as shown."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from stream_gru.cli.main import COMMANDS
from stream_gru.core.prediction import Prediction
from stream_gru.core.types import DropReason, ResetReason
from stream_gru.model.bundle import load_bundle
from stream_gru.runtime.metrics import Metrics
from tests.support.broker import MOSQUITTO, free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# Run by what runs these tests, or too long to be run inside them.
NOT_HERE = {"make demo", "make test"}
LIVE, OWN = "A live system without hardware, in five minutes", "Your own recordings, in an hour"
STATES = "Never lose a step"
RECIPES = "Recipes: the systems of five tutorials"


def blocks(language: str, section: str = "") -> list[str]:
    """The fenced blocks of a language, in order, of one section or of all."""
    text = README if not section else README.partition(f"## {section}\n")[2].partition("\n## ")[0]
    assert text, section
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def save_configurations(folder: Path, section: str) -> None:
    """Save the configurations of a section under the names that stand in their first lines."""
    for text in blocks("toml", section):
        (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)


def environment() -> dict[str, str]:
    """With the commands of the environment that runs the tests."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"}


def walk(section: str, folder: Path) -> str:
    """Run every shell block of a section, in order, in one folder, with its configurations; what they print."""
    pytest.importorskip("tensorflow")
    save_configurations(folder, section)
    printed = []
    for block in blocks("sh", section):
        done = subprocess.run(
            ["sh", "-ec", block], cwd=folder, env=environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, block + done.stderr
        printed.append(done.stdout)
    return "".join(printed)


def test_the_walk_through_a_recipe_works_as_printed(tmp_path: Path) -> None:
    """Trained, explained, written on, exported: every line of the section."""
    printed = walk(RECIPES, tmp_path)
    assert "test accuracy" in printed
    assert re.search(r"^[aeiou]{60}$|ouu[aeiou]{57,}", printed, re.MULTILINE), printed
    assert (tmp_path / "vowels.onnx").exists()
    assert (tmp_path / "vowels-int8.tflite.json").exists()


def test_the_walk_from_recordings_to_forecasts_works_as_printed(tmp_path: Path) -> None:
    """From simulated recordings to a bundle, a replay and a daemon on standard input."""
    walk(OWN, tmp_path)
    assert len((tmp_path / "forecasts.jsonl").read_text().splitlines()) == 3600
    assert (tmp_path / "forecasts-live.jsonl").read_text()


def test_the_walk_through_states_works_as_printed(tmp_path: Path) -> None:
    """Run, listed, shown, taken to another gateway, reset."""
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    (tmp_path / "gateway.toml").write_text(
        blocks("toml", STATES)[0].replace("[[sink]]", "[metrics]\nenabled = false\n[[sink]]")
    )
    (block,) = blocks("sh", STATES)
    done = subprocess.run(
        ["sh", "-ec", block], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^pump-7 +2026-\S+ +\d+  stored$", done.stdout, re.MULTILINE), done.stdout
    assert "1 streams imported" in done.stderr


@pytest.mark.servers
@pytest.mark.skipif(not (MOSQUITTO and shutil.which("mosquitto_sub")), reason="mosquitto is not installed")
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_live_walk_works_as_printed(tmp_path: Path) -> None:
    """Broker, devices, daemon, tap, commands, recording, reload, serial port: as printed, but for the two ports."""
    shutil.copytree(ROOT / "sample_data" / "pump.bundle", tmp_path / "sample_data" / "pump.bundle")
    save_configurations(tmp_path, LIVE)
    ports = {"18830": str(free_port()), "9723": str(free_port())}
    for path in tmp_path.glob("*.toml"):
        path.write_text(with_ports(path.read_text(), ports))
    # A reader of the page takes a moment between two blocks.
    script = "\nsleep 2\n".join(with_ports(block, ports) for block in blocks("sh", LIVE))
    with subprocess.Popen(
        ["bash", "-ec", script], cwd=tmp_path, env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as walk:  # fmt: skip
        try:
            out, err = walk.communicate(timeout=120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(walk.pid, signal.SIGKILL)
    said = f"{out}\n{err}\n{(tmp_path / 'daemon.log').read_text()}"
    assert walk.returncode == 0, said
    assert "Traceback" not in said
    assert out.count('{"id":"pump-') + out.count("ok") >= 6, said
    assert 'stream_gru_commands_total{action="reset",result="ok"} 1.0' in out
    live, replayed = ((tmp_path / name).read_text().splitlines() for name in ("live.jsonl", "replayed.jsonl"))
    assert live
    assert replayed
    assert "configuration taken" in said


def with_ports(text: str, ports: dict[str, str]) -> str:
    """The text with other ports, as the printed ones may be taken."""
    for printed, free in ports.items():
        text = text.replace(printed, free)
    return text


@pytest.mark.parametrize("block", blocks("python"))
def test_python_examples_run(block: str, tmp_path: Path) -> None:
    """Every Python block runs as it stands, in a folder with the sample data."""
    shutil.copytree(ROOT / "sample_data" / "pump.bundle", tmp_path / "sample_data" / "pump.bundle")
    done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_row_of_output_has_the_keys_of_a_row() -> None:
    """The JSON that is shown has the keys that are written."""
    shown = msgspec.json.decode(blocks("json")[0])
    written = Prediction("s", "t", "ok", "m", {"x": [1]}, {"x": [(0, 1)]}, 0.9, "a", {"a": 1.0}).as_dict()
    assert list(shown) == list(written)


def test_every_command_is_in_the_readme() -> None:
    """No command is a secret."""
    for name in COMMANDS:
        assert re.search(rf"`stream-gru ([a-z]+\\\|)*{name}\b", README), name


def test_every_metric_is_in_the_readme_and_no_other() -> None:
    """The table of metrics is that of the code."""
    bundle = load_bundle(ROOT / "sample_data" / "pump.bundle")
    metrics = Metrics(CollectorRegistry(), bundle.manifest, "litert", "0")
    families = [f for f in metrics.registry.collect() if f.name.startswith("stream_gru")]
    suffix = {"counter": "_total", "info": "_info"}
    names = {family.name + suffix.get(family.type, "") for family in families}
    of_the_c_export = {"stream_gru_reset", "stream_gru_step"}
    assert set(re.findall(r"`(stream_gru_\w+)", README)) - of_the_c_export == names


def test_every_reason_is_in_the_readme() -> None:
    """Why a sample is dropped and why a state is reset is explained."""
    for reason in [*DropReason, *(reason for reason in ResetReason if reason)]:
        assert f"`{reason.text}`" in README, reason


def test_every_target_of_the_makefile_that_the_readme_names_exists() -> None:
    """`make x` in the README is a target."""
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
