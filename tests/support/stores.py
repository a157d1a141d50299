"""Stores in a folder of a test: opened, killed, damaged."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from stream_gru.runtime.checkpoint.store import FILE_NAME, Store


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """A store that is closed at the end."""
    store = Store(folder)
    store.open()
    try:
        yield store
    finally:
        store.close()


def copy_of_now(folder: Path, target: Path) -> Path:
    """What a kill at this instant would leave on the disk; return ``target``.

    The files are copied while they are open, so nothing that a destructor writes is among them.
    """
    target.mkdir(mode=0o700, parents=True)
    for path in folder.glob(FILE_NAME + "*"):
        shutil.copy(path, target / path.name)
    return target


def checkpoint(store: Store) -> None:
    """Have all of the log in the file itself, and an empty log."""
    connection = store._connection
    assert connection is not None
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def change(folder: Path, text: str, *values: object) -> None:
    """Change a closed store by SQL, behind its back."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        assert connection.execute(text, values).rowcount > 0


def content(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of all tables of a closed store."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in sorted(names)}  # noqa: S608
