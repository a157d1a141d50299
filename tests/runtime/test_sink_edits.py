"""Sinks that are edited while a killed daemon is down: each row is in exactly one file, once."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from stream_gru.connectors.sinks.encoders import JsonEncoder
from stream_gru.connectors.sinks.file import FileSink
from stream_gru.core.protocols import Sink
from stream_gru.core.types import Position, RawMessage
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.ingest.ingest import Ingest
from stream_gru.runtime.wiring import Input
from tests.support.batches import batch
from tests.support.fake_connectors import ListSink, ListSource, ReadyDecoder
from tests.support.paths import BUNDLE
from tests.support.runtimes import daemon_of

ROWS = 12


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The shipped model."""
    return load_bundle(BUNDLE)


def run(folder: Path, bundle: Bundle, files: Mapping[str, str], first: int, killed_at: int = 0) -> int:
    """Run a daemon whose sinks write these files, from a row on; return how many rows are committed."""
    left = [killed_at]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    batches = [batch(["pump-1"], [second], [[100.0, 300.0, 5.0, 1.5]]) for second in range(ROWS)]
    source = ListSource(
        [RawMessage(str(n).encode(), "pump-1", position=Position("plant", n + 1)) for n in range(first, ROWS)]
    )
    sinks: dict[str, Sink] = {
        name: FileSink(folder / path, JsonEncoder(), append=True, rotate_bytes=4000, max_files=100)
        for name, path in files.items()
    }
    sinks["last"] = ListSink(on_write=count)
    pipeline = Pipeline(bundle, "numpy")
    plant = Input("plant", source, {"plant": Ingest("plant", ReadyDecoder(batches))})
    keeper = Checkpointer(pipeline, Store(folder / "state"))
    with contextlib.suppress(Killed):
        daemon_of([plant], pipeline, sinks, checkpointer=keeper, commit_every=3, commit_interval_s=1000.0).run()
    return max([first, *(position.offset for position in source.committed)])


def seconds(folder: Path, stem: str) -> list[str]:
    """Event times of the rows in a file and those rotated from it."""
    found = []
    for path in folder.glob(f"{stem}*"):
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found += [json.loads(line)["time"] for line in text.splitlines()]
    return sorted(found)


@pytest.mark.parametrize("killed_at", [2, 5, 8])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"a": "one"}, {"a": "two"}),
        ({"a": "one"}, {"b": "one"}),
        ({"a": "one"}, {"b": "two"}),
    ],
    ids=["path", "name", "path and name"],
)
def test_each_row_is_in_one_file_after_an_edit(
    tmp_path: Path, bundle: Bundle, before: dict[str, str], after: dict[str, str], suffix: str, killed_at: int
) -> None:
    """The old file is cut back to the last commit and complete; the new one begins behind it."""
    committed = run(tmp_path, bundle, {name: f"{path}.{suffix}" for name, path in before.items()}, 0, killed_at)
    run(tmp_path, bundle, {name: f"{path}.{suffix}" for name, path in after.items()}, committed)
    found = sorted([*seconds(tmp_path, "one"), *seconds(tmp_path, "two")])
    assert len(found) == len(set(found)) == ROWS


@pytest.mark.parametrize("killed_at", [2, 5, 8])
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_swapped_files_keep_each_row_once(tmp_path: Path, bundle: Bundle, suffix: str, killed_at: int) -> None:
    """Two sinks that write all rows exchange their files: each file has each row once."""
    committed = run(tmp_path, bundle, {"a": f"one.{suffix}", "b": f"two.{suffix}"}, 0, killed_at)
    run(tmp_path, bundle, {"a": f"two.{suffix}", "b": f"one.{suffix}"}, committed)
    for stem in ("one", "two"):
        found = seconds(tmp_path, stem)
        assert len(found) == len(set(found)) == ROWS


def test_a_removed_sink_leaves_no_offset_behind(tmp_path: Path, bundle: Bundle) -> None:
    """Rows that another program appends to the old file later are not cut off at the next start."""
    committed = run(tmp_path, bundle, {"a": "one.jsonl"}, 0, 5)
    run(tmp_path, bundle, {}, committed)
    size = (tmp_path / "one.jsonl").stat().st_size
    with (tmp_path / "one.jsonl").open("ab") as file:
        file.write(b"more\n")
    run(tmp_path, bundle, {}, ROWS)
    assert (tmp_path / "one.jsonl").stat().st_size == size + 5
