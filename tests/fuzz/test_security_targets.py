"""The targets that read bundles, configurations and requests: each detects a hole that a test makes."""

from __future__ import annotations

import pytest

from stream_gru.config import load
from stream_gru.model import bundle
from stream_gru.runtime.http import server as app
from tests.fuzz.campaign import run_campaign
from tests.fuzz.targets import SECURITY, seeds


@pytest.mark.parametrize("name", SECURITY)
def test_unchanged_seeds_are_taken(name: str) -> None:
    """Otherwise only the first check would be tested, not the code after it."""
    with SECURITY[name]() as target:
        seen = [what for seed in seeds(name) for what in target.check([seed], 0xFFFF01)]
    assert {"bundle": "loaded", "config": "taken", "http": "200"}[name] in seen


def test_a_hole_in_the_bundle_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that contains the attacker's text is a failure, and so is one of another kind."""
    monkeypatch.setattr(bundle, "_safe", str)
    long = b'{"format_version": 2, "%b": 1}' % (b"x" * 5000)
    with SECURITY["bundle"]() as target:
        with pytest.raises(AssertionError):
            target.check([long], 0)
        monkeypatch.setattr(bundle, "manifest_problems", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            target.check([seeds("bundle")[0]], 0)


def test_a_hole_in_the_configuration_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that raises its own error is a failure."""

    def careless(*_: object) -> list[object]:
        raise KeyError("channel")

    monkeypatch.setattr(load, "check_rules", careless)
    with SECURITY["config"]() as target:
        assert run_campaign(target, seeds("config"), 100, seed=7).failures


def test_a_hole_in_the_server_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A route that raises is a failure, as its answer and the log show."""
    monkeypatch.setattr(app, "choose_encoder", lambda _: 1 / 0)
    with SECURITY["http"]() as target, pytest.raises(AssertionError, match="ZeroDivisionError"):
        target.check([b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"], 0)
