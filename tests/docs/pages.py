"""README and the pages under docs/: their blocks, run as a reader runs them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.support.network import free_port
from tests.support.paths import ROOT

REPOSITORY = "https://github.com/stream-gru/stream-gru/blob/main/"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
GENERATED = {name for name in PAGES if name.startswith("docs/reference/")}
# Each guide has a test of its own beside this file, which adds the toy part that the guide shows.
GUIDES = {name for name in PAGES if name.startswith("docs/contributing/add-")}
WRITTEN = {name: text for name, text in PAGES.items() if name not in GENERATED | GUIDES}
# Printed ports may be in use.
PORTS = ("18830", "9723")
# Their environment is not that of these tests; `make test` runs them.
NOT_RUN = ("make demo\n", "make test\n", "make check\n", "pip install stream-gru && stream-gru demo\n")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language on a page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def files(page: str) -> dict[str, str]:
    """The configurations that a page tells the reader to save: those that start with a comment that is a file name."""
    named = ((text.partition("\n")[0].removeprefix("# "), text) for text in blocks(page, "toml"))
    return {name: text for name, text in named if name.endswith(".toml")}


def environment() -> dict[str, str]:
    """With the commands of the environment that runs the tests."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"}


def walk(
    page: str, folder: Path, *, ports: Mapping[str, str] | None = None, timeout_s: float = 300.0
) -> tuple[str, str]:
    """Save the files of a page, run its shell blocks in order, as printed except for the ports; return their output.

    Background processes are killed at the end.
    """
    replaced = dict(ports) if ports is not None else {port: str(free_port()) for port in PORTS}
    (folder / "sample_data").symlink_to(ROOT / "sample_data")
    for name, text in files(page).items():
        (folder / name).write_text(with_ports(text, replaced))
    script = "".join(with_ports(block, replaced) for block in blocks(page, "sh") if block not in NOT_RUN)
    assert script
    with subprocess.Popen(
        ["bash", "-ec", script], cwd=folder, env=environment(), start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as shell:  # fmt: skip
        try:
            out, err = shell.communicate(timeout=timeout_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, f"{out}\n{err}"
    assert "Traceback" not in out + err
    return out, err


def with_ports(text: str, ports: Mapping[str, str]) -> str:
    """The text with other ports."""
    for printed, free in ports.items():
        text = text.replace(printed, free)
    return text
