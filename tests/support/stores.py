"""Stores in a folder of a test: opened, killed, damaged; and checkpointers of a toy model over them."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from stream_gru.core.protocols import Stateful
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.eviction import StatePolicy
from stream_gru.runtime.checkpoint.store import FILE_NAME, Store
from tests.support.batches import CHANNELS, batch
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """Yield an open store, closed at the end."""
    store = Store(folder)
    store.open()
    try:
        yield store
    finally:
        store.close()


def copy_of_now(folder: Path, target: Path) -> Path:
    """Copy what a kill at this instant would leave on the disk; return ``target``.

    The files are copied while they are open, so nothing that a destructor writes is among them.
    """
    target.mkdir(mode=0o700, parents=True)
    for path in folder.glob(FILE_NAME + "*"):
        shutil.copy(path, target / path.name)
    return target


def checkpoint(store: Store) -> None:
    """Move all of the log into the file, and empty the log."""
    connection = store._connection
    assert connection is not None
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def change_store(folder: Path, text: str, *values: object) -> None:
    """Change a closed store by SQL."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        assert connection.execute(text, values).rowcount > 0


def store_content(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of all tables of a closed store."""
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'")]
        return {name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr) for name in sorted(names)}  # noqa: S608


def model(seed: int = 0, channels: int = CHANNELS, units: int = 8) -> Pipeline:
    """Return a pipeline over the model test-<seed>."""
    bundle = calibrated(make_bundle(channels=channels, labels=2, warm_up=2, seed=seed, units=(units,), targets=1))
    return toy_pipeline(bundle)


def checkpointer_of(
    folder: Path,
    pipeline: Pipeline | None = None,
    parts: Mapping[str, Stateful] | None = None,
    shared: Mapping[str, Stateful] | None = None,
    **policy: object,
) -> Checkpointer:
    """Return a checkpointer that has recovered what is in the folder."""
    found = Checkpointer(pipeline or model(), Store(folder), parts, shared, StatePolicy(**policy))  # type: ignore[arg-type]
    found.recover({}, {})
    return found


def feed(checkpointer: Checkpointer, stream: str, *times_s: float) -> None:
    """Process samples of one stream, as the daemon does."""
    checkpointer._pipeline.process(checkpointer.cache.load_streams(batch([stream] * len(times_s), times_s)))


def table_rows(pipeline: Pipeline) -> dict[str, bytes]:
    """Return all rows of the state table, by stream."""
    return {name: pipeline.table.row(name) for name in pipeline.streams}


FORM = model().row_schema
