from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml

from tests.deploy.rules import DASHBOARD, PROCESS, dashboard, exported_series, marks, metrics_of, panels, queries
from tests.deploy.rules import substituted as plain
from tests.deploy.support import DEPLOY, run_program
from tests.support.requirements import need

GRAFANA = DEPLOY / "grafana"
# Series of a histogram that are not queried separately.
PARTS = re.compile(r"_(count|sum|created|bucket)$")
# Shown as totals since the start of the daemon: most is counted before the first scrape.
TOTALS_SHOWN = {"stream_gru_states_damaged_total"}
# Shown under another name.
NOT_SHOWN = {"stream_gru_build_created"}


def test_it_is_what_its_script_prints() -> None:
    """dashboard.json is the output of make_dashboard.py."""
    printed = run_program(sys.executable, GRAFANA / "make_dashboard.py")
    assert printed.returncode == 0
    assert printed.stdout == DASHBOARD.read_text()


def test_it_is_of_the_model_that_every_version_imports() -> None:
    """Classic model with a stable uid and no id, a shared crosshair, a refresh, and no value to fill in by hand."""
    whole = dashboard()
    assert 39 <= whole["schemaVersion"] <= 42
    assert (whole["id"], whole["uid"], whole["graphTooltip"], whole["refresh"]) == (None, "stream-gru", 1, "30s")
    assert "__inputs" not in whole
    rows = [panel["title"] for panel in whole["panels"] if panel["type"] == "row"]
    assert rows == ["Health", "Streams", "Forecast", "Classes and alarms", "Latency", "Delivery", "State", "Process"]


def test_no_data_source_is_named() -> None:
    """Every query uses the data source that is selected at the top."""
    uids = re.findall(r'"datasource": \{\s*"type": "prometheus",\s*"uid": "([^"]*)"', DASHBOARD.read_text())
    assert set(uids) == {"${datasource}"}
    assert len(uids) == DASHBOARD.read_text().count('"datasource": {')


def test_gateways_can_be_chosen() -> None:
    """Job, instance and source accept several values and all; every query of a daemon uses the first two."""
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance", "source", "runbook"]
    for name in ("job", "instance", "source"):
        assert variables[name]["multi"]
        assert variables[name]["includeAll"]
    for query in (*queries(), *marks()):
        for selector in re.findall(r"\{([^}]*)\}", query.expression):
            assert 'job=~"$job", instance=~"$instance"' in selector, query


def test_every_panel_explains_itself() -> None:
    """Each has a title of its own, a description, a unit and a link to a section of the runbook that exists."""
    anchors = {f"#{name.lower()}" for name in re.findall(r"(?m)^## (\w+)$", (DEPLOY / "RUNBOOK.md").read_text())}
    titles = [panel["title"] for panel in panels()]
    assert len(set(titles)) == len(titles)
    for panel in panels():
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        (link,) = panel["links"]
        assert link["url"].removeprefix("${runbook}") in anchors


def test_panels_do_not_lie_on_each_other() -> None:
    """Every cell of the grid belongs to one panel at most, and ids are distinct."""
    taken: set[tuple[int, int]] = set()
    every = dashboard()["panels"]
    for panel in every:
        grid = panel["gridPos"]
        cells = {(x + grid["x"], y + grid["y"]) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in every}) == len(every)


def test_every_metric_that_is_shown_exists() -> None:
    """No panel and no annotation queries a metric that the daemon does not export."""
    known = exported_series() | PROCESS
    for query in (*queries(), *marks()):
        assert metrics_of(query.expression) <= known, query


def test_every_metric_that_exists_is_shown() -> None:
    """Every metric that the daemon exports is in some panel."""
    shown = {PARTS.sub("", name) for query in queries() for name in metrics_of(query.expression)}
    own = {name for name in exported_series() if name.startswith("stream_gru_") and not name.endswith("_created")}
    assert {PARTS.sub("", name) for name in own} - shown - NOT_SHOWN == set()


def test_rates_heed_the_interval_of_scraping() -> None:
    """Counters are read over $__rate_interval; only annotations have ranges of fixed length."""
    for query in queries():
        assert set(re.findall(r"\[([^\]]*)\]", query.expression)) <= {"$__rate_interval"}, query
        for name in metrics_of(query.expression) - TOTALS_SHOWN:
            if name.endswith(("_total", "_bucket", "_seconds_sum")):
                assert re.search(rf"(rate|increase)\({name}\{{", query.expression), query


def test_prometheus_understands_every_expression(tmp_path: Path) -> None:
    """Each, with the variables replaced, passes `promtool check rules` as a recording rule."""
    rules = [
        {"record": f"test:query_{n}", "expr": plain(query.expression)} for n, query in enumerate((*queries(), *marks()))
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    checked = run_program(need("promtool"), "check", "rules", file)
    assert checked.returncode == 0, checked.stdout
    assert f"{len(rules)} rules found" in checked.stdout
    assert len(rules) > 50


def test_provisioning_points_at_the_dashboard() -> None:
    """The provisioned folder is the one where the compose file mounts the dashboard."""
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/stream_gru.yml").read_text())["providers"]
    compose = (DEPLOY / "docker" / "compose.yml").read_text()
    assert f"../grafana/dashboard.json:{provider['options']['path']}/stream_gru.json:ro" in compose
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/stream_gru.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "$PROMETHEUS_URL"
    assert "PROMETHEUS_URL:" in compose
    assert json.loads(DASHBOARD.read_text())["tags"] == ["stream_gru"]
