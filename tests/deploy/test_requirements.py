"""The lock files in requirements/: they fit pyproject.toml, are complete with hashes, and agree with each other."""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterable
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

FOLDER = ROOT / "requirements"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
EXTRAS = PROJECT["optional-dependencies"]
# What `make lock` writes into each file.
DIRECT = {
    "gateway": [*PROJECT["dependencies"], *EXTRAS["binary"]],
    "dev": [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)],
    "build": GROUPS["build"],
    "tools": GROUPS["tools"],
}
TARGETS = [
    {"python_version": version, "python_full_version": f"{version}.2", "platform_machine": machine}
    for version in ("3.11", "3.12", "3.13")
    for machine in ("x86_64", "aarch64")
]
each_lock = pytest.mark.parametrize("lock", sorted(DIRECT))


def entries(text: str) -> list[tuple[Requirement, str]]:
    """The requirements of a lock file, each with its lines of hashes and of origins."""
    blocks = re.findall(r"(?m)^(\w.*?) \\\n((?:[ ]{4}.*\n)+)", text)
    return [(Requirement(line), rest) for line, rest in blocks]


def applies(requirement: Requirement, target: dict[str, str]) -> bool:
    """Whether a requirement counts on one version of Python and one processor, under Linux."""
    environment = {"sys_platform": "linux", "platform_python_implementation": "CPython", **target}
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": ""})


def unsatisfied(direct: Iterable[str], text: str) -> list[str]:
    """The requirements for which a lock file has, on some target, no version or one that is not allowed."""
    locked: dict[str, list[Requirement]] = {}
    for pin, _ in entries(text):
        locked.setdefault(canonicalize_name(pin.name), []).append(pin)
    missing = []
    for wanted in map(Requirement, direct):
        pins = locked.get(canonicalize_name(wanted.name), [])
        for target in (target for target in TARGETS if applies(wanted, target)):
            versions = [next(iter(pin.specifier)).version for pin in pins if applies(pin, target)]
            if len(versions) != 1 or not wanted.specifier.contains(versions[0]):
                missing.append(str(wanted))
                break
    return missing


def lock_text(name: str) -> str:
    """The content of a lock file."""
    return (FOLDER / f"{name}.txt").read_text()


def pinned(name: str) -> set[str]:
    """The pinned versions of a lock file, such as ``numpy==2.4.6``."""
    return {f"{pin.name}{pin.specifier}" for pin, _ in entries(lock_text(name))}


def test_every_file_is_a_lock_of_pyproject() -> None:
    """The folder holds exactly the locks, and all dependencies of pyproject.toml are in one."""
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(DIRECT)
    assert GROUPS["build"] == PYPROJECT["build-system"]["requires"]
    assert set(GROUPS) == {"build", "tools"}


@each_lock
def test_a_lock_satisfies_pyproject(lock: str) -> None:
    """Each dependency has one version, an allowed one, on every supported Python and processor: else `make lock`."""
    assert unsatisfied(DIRECT[lock], lock_text(lock)) == []


@each_lock
def test_a_lock_has_no_former_dependency(lock: str) -> None:
    """What a lock attributes to pyproject.toml is what pyproject.toml requires now."""
    attributed = {
        canonicalize_name(pin.name) for pin, rest in entries(lock_text(lock)) if "stream-gru (pyproject.toml" in rest
    }
    assert attributed == {canonicalize_name(Requirement(line).name) for line in DIRECT[lock]}


@pytest.mark.parametrize("change", ["numpy>=99", "a-new-dependency", "numpy<2"])
def test_a_lock_that_does_not_satisfy_pyproject_is_detected(change: str) -> None:
    """A raised floor, a new dependency and a ceiling below the locked version."""
    assert unsatisfied([*DIRECT["gateway"], change], lock_text("gateway")) == [change]


@each_lock
def test_every_locked_version_is_exact_and_has_hashes(lock: str) -> None:
    """No line of a lock lets the installer choose, and none is without a SHA-256."""
    text = lock_text(lock)
    found = entries(text)
    assert len(found) == len(re.findall(r"(?m)^\w", text))
    for pin, rest in found:
        assert [each.operator for each in pin.specifier] == ["=="], pin
        assert "--hash=sha256:" in rest, pin
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in re.findall(r"--hash=sha256:(\S+)", rest)), pin


@pytest.mark.parametrize("lock", ["gateway", "build"])
def test_the_tests_run_with_what_is_shipped(lock: str) -> None:
    """The gateway and the build of its wheel have the versions that the tests have."""
    assert pinned(lock) <= pinned("dev")


def test_the_tools_stay_beside_the_product() -> None:
    """No tool of `make lock`, `make sbom` and `make audit` is a dependency of the product or of its tests."""
    tools = {Requirement(line).name for line in GROUPS["tools"]}
    assert not tools & {Requirement(pin).name for pin in pinned("dev")}


AUDITED = {"name": "sound", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "private", "skip_reason": "Dependency not found on PyPI and could not be audited: private (1.0)"}
AFFECTED = {"name": "affected", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([AUDITED], 0, "audit: 1 locked versions, 0 advisories"),
        ([AUDITED, AFFECTED], 1, "affected 2.0: PYSEC-1, fixed in 2.1"),
        ([AUDITED, UNKNOWN], 0, "not audited, unknown to the advisory service: private"),
        ([AFFECTED, UNKNOWN], 1, "not audited, unknown to the advisory service: private"),
        ([UNKNOWN], 0, "audit skipped: the advisory service knows none of the 1 locked versions"),
    ],
)
def test_an_audit_says_what_it_has_not_audited(packages: list[dict[str, Any]], code: int, says: str) -> None:
    """An advisory fails; a version that the service does not know is named and never counts as sound."""
    text, exit_code = runpy.run_path(str(FOLDER / "audit.py"))["verdict"]({"dependencies": packages})
    assert exit_code == code
    assert says in text.splitlines()
