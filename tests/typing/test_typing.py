"""The types of the public API, as a user's type checker sees them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

from stream_gru import Status, load_bundle
from tests.support.paths import BUNDLE, ROOT
from tests.typing.parts import run
from tests.typing.predict import process_batch, push_one

HERE = Path(__file__).parent
PROGRAMS = [str(HERE / f"{name}.py") for name in ("predict", "parts", "mistakes")]


def test_user_code_passes_strict_type_checks(tmp_path: Path) -> None:
    """A strict check without our configuration accepts the programs of a user, and rejects each marked mistake."""
    command = ["mypy", "--strict", "--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path}", *PROGRAMS]
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, "MYPYPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_user_code_runs() -> None:
    """What the type checker accepts also works."""
    assert push_one(BUNDLE).stream == "pump-1"
    out = process_batch(BUNDLE, 130)  # the warm-up takes fewer rows
    assert (len(out), out.status[-1]) == (130, Status.OK)


def test_parts_of_a_user_run_together() -> None:
    """Own engine, source, decoder and sink carry samples through a pipeline; bad ones are counted."""
    text = io.StringIO()
    last = run(load_bundle(BUNDLE), [b"1", b"2", b"x", b"3"], text)
    assert text.getvalue() == "numbers 1\nnumbers 2\nnumbers 3\n"
    assert last is not None
