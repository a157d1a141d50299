from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.deploy.support import DEPLOY, run_program

RULES = DEPLOY / "udev" / "99-stream-gru.rules"
# man 7 udev: a key, optionally with an attribute in braces, an operator, and a value in double quotes.
TERM = re.compile(r'(?P<key>[A-Z_]+)(?:\{(?P<of>[^}"]+)\})?(?P<operator>==|!=|=|\+=|-=|:=)"(?P<value>[^"]*)"')
MATCHES = {"ACTION", "SUBSYSTEM", "KERNEL", "ENV", "ATTR", "ATTRS", "SUBSYSTEMS", "KERNELS"}
ASSIGNS = {"SYMLINK": {"+="}, "GROUP": {"="}, "MODE": {"="}, "TAG": {"+="}, "ENV": {"=", "+="}}
ALONE = {"LABEL", "GOTO"}


def rules() -> list[str]:
    """Each rule on a line of its own, without comments."""
    joined = RULES.read_text().replace("\\\n", "")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def terms(rule: str) -> list[re.Match[str]]:
    """The terms of a rule; fails on any other text between them."""
    found = [TERM.fullmatch(part) for part in re.split(r",\s*", rule)]
    assert all(found), rule
    return [term for term in found if term is not None]


def test_every_term_is_of_the_language() -> None:
    """Keys, operators and values are those that udev knows; matches use == and !=, assignments do not."""
    for rule in rules():
        for term in terms(rule):
            key, operator = term["key"], term["operator"]
            if operator in ("==", "!="):
                assert key in MATCHES, rule
            else:
                assert operator in ASSIGNS.get(key, {"="}), rule
                assert key in ASSIGNS or key in ALONE, rule
            assert (term["of"] is not None) == (key == "ENV"), rule


def test_every_jump_has_its_label() -> None:
    """A GOTO names a label further down."""
    labels = {term["value"]: n for n, rule in enumerate(rules()) for term in terms(rule) if term["key"] == "LABEL"}
    jumps = [(term["value"], n) for n, rule in enumerate(rules()) for term in terms(rule) if term["key"] == "GOTO"]
    assert jumps
    for label, n in jumps:
        assert labels[label] > n


def test_a_device_is_named_by_its_serial_number_and_wants_the_daemon() -> None:
    """The example gives a symlink, access for the group of the unit, and starts the unit that is shipped."""
    (rule,) = [rule for rule in rules() if "SYMLINK" in rule]
    given = {(term["key"], term["of"]): term["value"] for term in terms(rule)}
    assert ("ENV", "ID_SERIAL_SHORT") in given
    assert given["SYMLINK", None].startswith("stream-gru/")
    assert given["TAG", None] == "systemd"
    assert (DEPLOY / "systemd" / given["ENV", "SYSTEMD_WANTS"]).is_file()
    unit = (DEPLOY / "systemd" / "stream-gru.service").read_text()
    assert f"SupplementaryGroups={given['GROUP', None]}\n" in unit
    assert given["MODE", None] == "0660"


def test_udev_itself_agrees(tmp_path: Path) -> None:
    """`udevadm verify` reports nothing (udev 254 or newer has it)."""
    udevadm = shutil.which("udevadm")
    if udevadm is None or "Unknown command" in run_program(udevadm, "verify", "--help").stdout:
        pytest.skip("this udevadm has no verify")
    copy = tmp_path / RULES.name
    shutil.copy(RULES, copy)
    verified = run_program(udevadm, "verify", copy)
    assert verified.returncode == 0, verified.stdout
