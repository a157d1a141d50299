"""What `make arm-test` concludes from the consoles of its machines; no machine is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import pytest

from tests.arm import __main__ as arm
from tests.arm.image import Image

EQUAL = {"cortex-a53": "digest 1", "cortex-a72": "digest 1"}


class FakeMachine:
    """Prints one claim, which ``found`` names by processor: "" does not hold, "hangs" never comes."""

    found: Mapping[str, str]

    def __init__(self, processor: str, _: Image, __: Path, stage: str) -> None:
        claim = {"text": "a claim", "holds": bool(self.found[processor]), "found": self.found[processor], "seconds": 1}
        self._lines = [f"claim {json.dumps(claim)}", "end"] if self.found[processor] != "hangs" else []
        if stage != "claims":
            self._lines = ["recovery", "progress 0.01", "progress 0.9", "end"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def lines(self) -> Iterator[str]:
        """Its console."""
        yield from self._lines

    def cut_power(self, _: float) -> None:
        """Nothing runs."""

    def wait_until_off(self) -> None:
        """Nothing runs."""


def conclude(monkeypatch: pytest.MonkeyPatch, folder: Path, found: Mapping[str, str]) -> int:
    """The exit code where the machines find this."""
    image = Image(folder / "kernel", folder / "initrd", folder / "disk.img")
    image.disk.touch()
    monkeypatch.setattr(FakeMachine, "found", found, raising=False)
    monkeypatch.setattr(arm, "Machine", FakeMachine)
    monkeypatch.setattr(arm, "build_image", lambda _: image)
    monkeypatch.setattr(arm, "emulator_version", lambda: "")
    monkeypatch.setattr("sys.argv", ["arm"])
    return arm.main()


def test_claims_that_hold_are_a_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All claims hold, and the machines find the same bytes."""
    assert conclude(monkeypatch, tmp_path, EQUAL) == 0


@pytest.mark.parametrize("found", ["", "digest 2", "hangs"])
def test_each_failure_is_the_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, found: str) -> None:
    """A claim that does not hold, other bytes than on the other machine, a machine that stops before its end."""
    assert conclude(monkeypatch, tmp_path, {**EQUAL, "cortex-a72": found}) == 1


def test_what_cannot_be_had_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without QEMU nothing is tested; the program and its package are named."""
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setattr("sys.argv", ["arm", "--cache", str(tmp_path)])
    assert arm.main() == 0
    assert capsys.readouterr().out == (
        "skipped: cannot get the program qemu-system-aarch64 (Debian package qemu-system-arm)\n"
    )
