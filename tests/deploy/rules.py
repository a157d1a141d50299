"""The rules, the dashboard and the exported metrics, as the tests need them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from stream_gru.model.bundle import load_bundle
from stream_gru.runtime.metrics import Metrics
from tests.deploy.support import DEPLOY
from tests.support.paths import BUNDLE

RULES = DEPLOY / "prometheus" / "stream_gru.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboard.json"
METRIC = re.compile(r"\b((?:stream_gru|process)_[a-z0-9_]+)\b")
# The metrics that `prometheus_client` exports of the process; only some of them without /proc.
PROCESS = {
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
}


@dataclass(frozen=True)
class Query:
    """One expression of a panel."""

    panel: str
    unit: str
    expression: str


def alerting_rules() -> dict[str, dict[str, Any]]:
    """Alerting rules by name."""
    return {rule["alert"]: rule for rule in _rules() if "alert" in rule}


def recording_rules() -> dict[str, str]:
    """Recording rules: name and expression."""
    return {rule["record"]: rule["expr"] for rule in _rules() if "record" in rule}


def _rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        yield from group["rules"]


def dashboard() -> dict[str, Any]:
    """The shipped dashboard."""
    whole: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return whole


def panels() -> list[dict[str, Any]]:
    """The panels with a query."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Every expression of every panel."""
    return [
        Query(panel["title"], panel["fieldConfig"]["defaults"]["unit"], target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]


def marks() -> list[Query]:
    """The expressions of the annotations."""
    return [Query(a["name"], "", a["expr"]) for a in dashboard()["annotations"]["list"]]


def substituted(expression: str, interval: str = "5m") -> str:
    """An expression as Grafana sends it with its variables at their defaults."""
    return (
        expression.replace("$__rate_interval", interval)
        .replace("$job", ".*")
        .replace("$instance", ".*")
        .replace("$source", ".*")
    )


def exported_series() -> set[str]:
    """The names of all series of a daemon with one source, one sink and the model that is shipped."""
    registry = CollectorRegistry()
    metrics = Metrics(registry, load_bundle(BUNDLE).manifest, "numpy", "0")
    metrics.add_source("mqtt")
    metrics.add_sink("mqtt")
    return {sample.name for family in registry.collect() for sample in family.samples}


def metrics_of(expression: str) -> set[str]:
    """The metrics that an expression reads; a recorded name contains a colon and does not count."""
    without_records = re.sub(r"\b[a-z_]+:[a-z0-9_:]+", "", expression)
    return set(METRIC.findall(re.sub(r'"[^"]*"', "", without_records)))
