"""The package as it is installed, the deployment folder and the files of the project beside them."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.deploy.support import DEPLOY
from tests.support.paths import ROOT, SAMPLE_DATA

README = (DEPLOY / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SAMPLES = "stream_gru/examples/sample_data/"
MAX_SAMPLE_BYTES = 500_000


def build_distribution(kind: str, source: Path, out: Path) -> Path:
    """Build a ``wheel`` or ``sdist`` of a source folder with the installed setuptools, without a network."""
    script = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel of this checkout, and the wheel of its source distribution."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "checkout"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__", "train")
    shutil.copytree(SAMPLE_DATA, source / "sample_data", ignore=ignore)
    shutil.copytree(
        ROOT / "stream_gru", source / "stream_gru", symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("wheel", "sdist", "unpacked", "second"):
        (folder / name).mkdir()
    wheel = build_distribution("wheel", source, folder / "wheel")
    archive = build_distribution("sdist", source, folder / "sdist")
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", folder / "unpacked"], check=True)
    (unpacked,) = (folder / "unpacked").iterdir()
    return wheel, build_distribution("wheel", unpacked, folder / "second")


def test_the_wheel_holds_the_package_and_a_small_sample(wheels: tuple[Path, Path]) -> None:
    """Each module and data file of the package is in it; the samples are the files of the repository, and small."""
    with zipfile.ZipFile(wheels[0]) as wheel:
        packed = {one.filename: one for one in wheel.infolist()}
        samples = {name: wheel.read(name) for name in packed if name.startswith(SAMPLES)}
        entry_points = wheel.read(next(name for name in packed if name.endswith("entry_points.txt"))).decode()
    for path in (ROOT / "stream_gru").glob("**/*"):
        if path.suffix in (".py", ".toml", ".typed"):
            assert path.relative_to(ROOT).as_posix() in packed, path
    assert {name.removeprefix(SAMPLES).split("/")[0] for name in samples} == {"held_out", "pump.bundle"}
    for name, content in samples.items():
        assert content == (SAMPLE_DATA / name.removeprefix(SAMPLES)).read_bytes(), name
    assert sum(packed[name].compress_size for name in samples) < MAX_SAMPLE_BYTES
    assert "stream-gru = stream_gru.cli.main:main" in entry_points


def test_a_source_distribution_gives_the_same_wheel(wheels: tuple[Path, Path]) -> None:
    """A wheel that is built from the source distribution has the same files with the same content."""
    contents = []
    for path in wheels:
        with zipfile.ZipFile(path) as wheel:
            contents.append({one.filename: one.CRC for one in wheel.infolist() if "dist-info" not in one.filename})
    assert contents[0] == contents[1]


def test_the_demo_runs_from_an_installed_wheel(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    """Outside a checkout, without any argument, the demo finds its bundle and recording in the installed package."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.unpack_archive(wheels[0], site, "zip")
    with gzip.open(site / SAMPLES / "held_out" / "pumps.csv.gz", "rt") as recording:
        samples = sum(1 for _ in recording) - 1
    done = subprocess.run(
        [sys.executable, "-m", "stream_gru", "demo", "--fast"],
        env={**os.environ, "PYTHONPATH": str(site)}, cwd=elsewhere, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"bundle {site / SAMPLES / 'pump.bundle'}" in done.stderr
    assert f"samples     {samples:,}" in done.stderr
    assert "skill against persistence" in done.stderr
    assert list(elsewhere.iterdir()) == []


def test_the_repository_holds_one_copy_of_the_samples() -> None:
    """The samples of the package are a link to the folder at the top, which an editable install follows."""
    link = ROOT / SAMPLES
    assert link.is_symlink()
    assert link.resolve() == SAMPLE_DATA
    assert not link.readlink().is_absolute()


def test_the_project_page_is_complete() -> None:
    """An index shows where source, documents, issues and changes are, who wrote it, and that it is typed."""
    assert set(PROJECT["urls"]) == {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
    for url in PROJECT["urls"].values():
        assert url.startswith("https://github.com/stream-gru/stream-gru")
    assert PROJECT["authors"] == [{"name": "The stream_gru developers"}]
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert (ROOT / "stream_gru" / "py.typed").exists()


@pytest.mark.skipif(find_spec("twine") is None, reason="twine is not installed")
def test_the_readme_renders_on_a_package_index(wheels: tuple[Path, Path]) -> None:
    """The metadata pass the strict check of the package index."""
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheels[0])]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_pre_commit_runs_the_checks_of_make_check() -> None:
    """The hooks are the commands of `make check` but for the tests."""
    recipe = re.search(r"(?m)^check: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    assert recipe is not None
    commands = [line.strip().replace("$(DEV)", ".venv-dev") for line in recipe[1].splitlines()]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"] for hook in local["hooks"]]
    assert hooks == [command for command in commands if "pytest" not in command]
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


def test_the_deployment_readme_lists_every_file() -> None:
    """Each folder and file beside README.md is in its table, and each entry of the table exists."""
    listed = set(re.findall(r"(?m)^\| `([^`]+)`", README))
    for entry in listed:
        assert (DEPLOY / entry).exists(), entry
    for path in DEPLOY.iterdir():
        if path.name not in ("README.md", "__pycache__"):
            assert any(entry.split("/")[0] == path.name for entry in listed), path


def test_the_installation_copies_files_that_exist() -> None:
    """Every file that the commands of the installation copy from this repository exists."""
    sources = re.findall(r"(?m)^cp (?:-r )?(.+?) /etc/", README)
    assert len(sources) == 6
    for source in (Path(name) for line in sources for name in line.split()):
        assert (ROOT / source).exists(), source


def test_unit_image_and_manual_use_the_same_paths_and_port() -> None:
    """Program, configuration and port are the same in the unit, the image, the scraping and the manual."""
    unit = (DEPLOY / "systemd" / "stream-gru.service").read_text()
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    for text in (unit, image, README):
        assert "/etc/stream-gru" in text
        assert "/var/lib/stream-gru" in text or text is README
    assert "/opt/stream-gru/bin/stream-gru" in unit
    assert "/opt/stream-gru/bin/stream-gru" in README
    assert "127.0.0.1:9723" in (DEPLOY / "prometheus" / "prometheus.yml").read_text()
