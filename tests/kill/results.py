"""The results a daemon leaves, and how they differ from those of another one."""

from __future__ import annotations

import csv
import gzip
import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from stream_gru.connectors.sinks.file_recovery import rotated_files
from tests.kill.points import AUDIT, CHANGES, ROWS, TABLE

_Name = TypeVar("_Name", str, tuple[str, str])


@dataclass(frozen=True)
class Results:
    """States and component states by name, and the rows of each file in order; rotated files of a table together."""

    states: Mapping[str, bytes]
    memories: Mapping[tuple[str, str], bytes]
    files: Mapping[str, Sequence[bytes]]
    faults: Sequence[str] = ()


def read_results(folder: Path) -> Results:
    """Read the results in a folder of `tests.kill.runs` after all writers have ended."""
    with closing(sqlite3.connect(folder / "state" / "state.db")) as connection:
        check = connection.execute("PRAGMA integrity_check").fetchone()[0]
        states = dict(connection.execute("SELECT name, row FROM stream"))
        found = connection.execute("SELECT component, key, data FROM component_state")
        memories = {(part, name): data for part, name, data in found}
    faults = [] if check == "ok" else [f"state.db: {check}"]
    faults += [f"{path.name}: was moved aside" for path in (folder / "state").glob("*.damaged-*")]
    files: dict[str, Sequence[bytes]] = {}
    for name in (ROWS, CHANGES):
        path = folder / name
        files[name] = path.read_bytes().splitlines(keepends=True) if path.exists() else ()
    try:
        files[TABLE] = _table(folder / TABLE)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        faults.append(f"{TABLE}: cannot be read: {error}")
    try:
        files[AUDIT] = _audited(folder)
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, KeyError) as error:
        faults.append(f"{AUDIT}: cannot be read: {error}")
    return Results(states, memories, files, faults)


def _audited(folder: Path) -> list[bytes]:
    """Return stream and time of the rows in all files of the audit, sorted."""
    found: list[bytes] = []
    for path in folder.glob(f"{AUDIT}-*"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if ".csv" in path.name:
            rows: Iterable[dict[str, str]] = csv.DictReader(data.decode().splitlines())
        else:
            rows = map(json.loads, data.splitlines())
        found += [f"{row['stream']} {row['time']}".encode() for row in rows]
    return sorted(found)


def _table(path: Path) -> list[bytes]:
    """Return the rows of all files of a table, with the header once.  Raises ValueError if headers differ."""
    rows: list[bytes] = []
    for one in (*rotated_files(path), path):
        with gzip.open(one) as file:
            header, *more = file.read().splitlines(keepends=True) or [b""]
        if rows and header and header != rows[0]:
            raise ValueError(f"{one.name}: another header")
        rows += more if rows else [header, *more] if header else []
    return rows


def differences(expected: Results, found: Results) -> list[str]:
    """Return all differences byte for byte, one sentence each; nothing for equal runs."""
    problems = [*found.faults]
    problems += _of_tables("stream", expected.states, found.states)
    problems += _of_tables("memory of", expected.memories, found.memories)
    for name, rows in expected.files.items():
        problems += _of_rows(name, rows, found.files.get(name, ()))
    return problems


def _of_tables(what: str, expected: Mapping[_Name, bytes], found: Mapping[_Name, bytes]) -> list[str]:
    wrong = [name for name in expected if found.get(name) != expected[name]]
    extra = [name for name in found if name not in expected]
    words = ((f"{len(wrong)} of {len(expected)} differ", wrong), (f"{len(extra)} too many", extra))
    return [f"{what} {text}, as {names[0]!r}" for text, names in words if names]


def _of_rows(name: str, expected: Sequence[bytes], found: Sequence[bytes]) -> list[str]:
    if list(expected) == list(found):
        return []
    missing, doubled = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    pairs = enumerate(zip_longest(expected, found, fillvalue=b""), 1)
    at, (wanted, got) = next((at, pair) for at, pair in pairs if pair[0] != pair[1])
    return [
        f"{name}: {missing.total()} rows missing, {doubled.total()} too many; row {at} of {len(expected)}: "
        f"expected {wanted[:120]!r}, got {got[:120]!r}"
    ]


def of_published(rows: Sequence[bytes], heard: Mapping[str, set[bytes]]) -> list[str]:
    """Return the differences between the outputs that a subscriber received and the rows of a file."""
    wanted = {json.loads(row)["id"]: row.rstrip(b"\n") for row in rows}
    missing = [name for name in wanted if name not in heard]
    strange = [name for name in heard if name not in wanted]
    wrong = [name for name, payloads in heard.items() if name in wanted and payloads != {wanted[name]}]
    words = (("missing", missing), ("unknown", strange), ("of another payload", wrong))
    return [f"mqtt: {len(names)} ids {word}, as {names[0]!r}" for word, names in words if names]


def applied(rows: Sequence[bytes]) -> list[tuple[str, int]]:
    """Return stream and counter of each output, in order: which samples were applied, and how often."""
    return [(record["stream"], record["seq"]) for record in map(json.loads, rows)]
