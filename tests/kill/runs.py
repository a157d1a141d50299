"""Configurations of the daemon that is killed, and of the undisturbed one."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.kill.life import Life
from tests.kill.messages import LAST, Message
from tests.kill.points import AUDIT, AUDIT_SUFFIXES, CHANGES, ROWS, TABLE
from tests.support.paths import BUNDLE, ROOT
from tests.support.requirements import MOSQUITTO

LOG = "daemon.log"
CLIENT_ID = "gateway"
_SETTINGS = """
[run]
bundle = "{bundle}"
state_dir = "{into}{state}"
batch_rows = {batch_rows}
commit_every = {commit_every}
commit_interval_s = {commit_interval_s}
stream_idle_timeout_s = 100000.0
emit = "{emit}"
max_streams = {max_streams}
max_streams_policy = "{max_streams_policy}"

{source}
[source.input]
time = "{time}"
time_unit = "s"
stream = "{stream}"
label = ""
device_seq = "seq"
reset = "reset"
{first}
[[sink]]
type = "file"
name = "rows"
path = "{into}{rows}"

[[sink]]
type = "file"
name = "table"
path = "{into}{table}"
rotate_bytes = 4000
max_files = 100000

[[sink]]
type = "file"
name = "changes"
path = "{into}{changes}"
throttle = "change"

{last}
[metrics]
enabled = false
"""
_AUDIT = """
[[sink]]
type = "file"
name = "{audit_name}"
path = "{into}{audit}"
rotate_bytes = {audit_rotate_bytes}
max_files = 100000
"""
_MQTT = """
[[broker]]
url = "{url}"
client_id = "{client_id}"

[[source]]
type = "mqtt"
topics = ["{client_id}/{{stream}}/data"]
format = "jsonl"
"""
_MQTT_SINK = """
[[sink]]
type = "mqtt"
availability_topic = ""
"""
_REPLAY = """
[[source]]
type = "replay"
files = ["messages.jsonl"]
"""


@dataclass(frozen=True)
class Settings:
    """The settings each start chooses; they must not change the results.

    ``into``: a folder, relative and with its slash, for all output; devices send to topics below ``client_id``.
    ``audit``: a file whose table is the first or the last one; all of its names together have each row once.
    """

    batch_rows: int = 1024
    commit_every: int = 500
    commit_interval_s: float = 0.2
    emit: str = "after_commit"
    max_streams: int = 1000
    max_streams_policy: str = "reject"
    into: str = ""
    client_id: str = CLIENT_ID
    state: str = "state"
    audit: str = f"{AUDIT}-0.jsonl"
    audit_name: str = AUDIT
    audit_rotate_bytes: int = 0
    audit_first: bool = False


class Edits:
    """Edits of a configuration while the daemon is down: another file, format or name, another order of the tables,
    and a state folder that was moved.
    """

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self._folder, self._rng, self._now = folder, rng, Settings()

    def apply(self, settings: Settings) -> Settings:
        """Edit some of the keys, at random."""
        draw: dict[str, Callable[[], Any]] = {
            "audit": lambda: f"{AUDIT}-{self._rng.randrange(4)}{self._rng.choice(AUDIT_SUFFIXES)}",
            "audit_name": lambda: self._rng.choice((AUDIT, "journal")),
            "audit_rotate_bytes": lambda: self._rng.choice((0, 3000)),
            "audit_first": lambda: self._rng.random() < 0.5,
            "state": lambda: self._rng.choice(("state", "moved")),
        }
        changed = {key: new() for key, new in draw.items() if self._rng.random() < 0.3}
        return self._moved(replace(self._now, **changed), settings)

    def end(self, settings: Settings) -> Settings:
        """Move the state folder back; keep the rest."""
        return self._moved(replace(self._now, state=Settings.state), settings)

    def _moved(self, edited: Settings, settings: Settings) -> Settings:
        if edited.state != self._now.state and (self._folder / self._now.state).exists():
            (self._folder / self._now.state).rename(self._folder / edited.state)
        self._now = edited
        own = ("state", "audit", "audit_name", "audit_rotate_bytes", "audit_first")
        return replace(settings, **{key: getattr(edited, key) for key in own})


def write_config(folder: Path, settings: Settings, *, url: str = "", time: str = "ts") -> Path:
    """Write the configuration in ``folder``, of a broker's messages or, without one, of ``messages.jsonl`` there."""
    audit = _AUDIT.format(**vars(settings))
    text = _SETTINGS.format(
        bundle=BUNDLE,
        first=audit if settings.audit_first else "",
        last="" if settings.audit_first else audit,
        source=_MQTT.format(url=url, client_id=settings.client_id) if url else _REPLAY,
        time=time,
        stream="" if url else "device",
        rows=ROWS,
        table=TABLE,
        changes=CHANGES,
        **vars(settings),
    )
    path = folder / "gateway.toml"
    path.write_text(text + (_MQTT_SINK if url else ""))
    return path


def write_recording(path: Path, messages: Sequence[Message]) -> None:
    """Write messages as lines of a file, each with the name of its device, if it can be parsed."""
    with path.open("wb") as file:
        for one in messages:
            payload = one.payload
            if one.seq >= 0:
                payload = b'{"device": "%s", ' % one.stream.encode() + payload[1:]
            file.write(payload.replace(b"\n", b" ") + b"\n")


def processed_all(folder: Path) -> bool:
    """Return whether the output of the last message is in the file of rows."""
    path = folder / ROWS
    if not path.exists():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        return f'"stream":"{LAST}"'.encode() in file.read()


def run_to_the_end(
    folder: Path, life: Life, *, timeout_s: float = 60.0, quiet: Callable[[], bool] | None = None
) -> list[str]:
    """Wait until all messages are processed and ``quiet`` is true, and stop the daemon; return what went wrong.

    ``timeout_s``: how long its file of rows may stay the same.
    """
    problems = [] if life.wait_for("l") else [f"it ended at once: {life.output()[-2000:]}"]
    size, since = -1, time.monotonic()
    while not (processed_all(folder) and (quiet is None or quiet())):
        now = (folder / ROWS).stat().st_size if (folder / ROWS).exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        if time.monotonic() - since > timeout_s or life.wait(0.05) is not None:
            problems.append(f"the last message was never processed: {life.output()[-1000:]}")
            break
    code = life.stop()
    if code != 0:
        problems.append(f"the end: expected exit code 0, got {code}: {life.output()[-2000:]}")
    return [*problems, *life.error_lines()]


def versions() -> str:
    """Return the versions used for the proof."""
    broker = subprocess.run([MOSQUITTO, "-h"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT)
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False, cwd=ROOT)
    return ", ".join((
        f"python {sys.version.split()[0]}",
        broker or "no mosquitto",
        f"paho {version('paho-mqtt')}",
        f"sqlite {sqlite3.sqlite_version}",
        f"commit {commit.stdout.strip()[:12]}{' with changes' if changed.stdout else ''}",
    ))  # fmt: skip
