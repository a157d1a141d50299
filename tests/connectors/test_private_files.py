"""No other user can read the daemon's files, at any umask."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_gru.connectors.mqtt.subscriptions import Subscriptions


@pytest.fixture(autouse=True)
def _careless() -> Iterator[None]:
    """A umask that removes no permission."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_what_a_session_is_subscribed_to(tmp_path: Path) -> None:
    """Topics may name customers and places."""
    subscriptions = Subscriptions("mqtt", "gateway", ["a/#"], 1, str(tmp_path))
    subscriptions._granted = {"a/#"}
    for _ in range(2):
        subscriptions._save()
        (file,) = tmp_path.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
