"""A file sink that is killed at any time and restarted has the rows of one that was never killed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.sink_runs import FILE_NAMES, OUTPUTS, SinkRun, encoder_of, file_content, rows_in

WRITES = st.tuples(st.just("write"), st.integers(0, 7))
COMMITS = st.tuples(st.just("commit"), st.none())
KILLS = st.tuples(
    st.sampled_from(["kill", "kill after flush", "kill after store"]),
    st.tuples(st.booleans(), st.binary(max_size=30)),
)


def kill_run(run: SinkRun, when: str, lost: bool, left: bytes) -> None:
    """Kill it now, or in the middle of a commit."""
    if when != "kill":
        mark = run.flush()
        if when == "kill after store":
            run.store(mark)
    run.kill(lost, left)


@pytest.mark.parametrize("name", FILE_NAMES)
@given(steps=st.lists(st.one_of(WRITES, COMMITS, KILLS), max_size=25), rotate_bytes=st.sampled_from([0, 1, 200, 2000]))
@settings(max_examples=60)
def test_a_killed_sink_has_the_committed_rows_and_then_all(
    name: str, steps: list[tuple[str, object]], rotate_bytes: int
) -> None:
    """After each kill the files have the committed rows; after all writes, the rows of an uninterrupted run."""
    with tempfile.TemporaryDirectory() as folder, mock.patch("os.fsync"):
        run = SinkRun(Path(folder) / name, rotate_bytes)
        run.start()
        for what, how in steps:
            if what == "write":
                assert isinstance(how, int)
                run.write(how)
            elif what == "commit":
                run.commit()
            else:
                assert isinstance(how, tuple)
                kill_run(run, what, *how)
                run.start()
                run.sink.close()
                assert rows_in(run.path) == run.expected(run.stored_rows)
                run.start()
        run.write(len(OUTPUTS))
        run.commit()
        run.sink.close()
        assert rows_in(run.path) == run.expected(len(OUTPUTS))
        if not rotate_bytes:
            assert file_content(run.path) == encoder_of(run.path).header(OUTPUTS.spec) + run.expected(len(OUTPUTS))
