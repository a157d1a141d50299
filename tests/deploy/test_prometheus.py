from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy.rules import PROCESS, RULES, alerting_rules, exported_series, metrics_of, recording_rules
from tests.deploy.support import DEPLOY, run_program
from tests.support.requirements import need

FOLDER = DEPLOY / "prometheus"
TESTS = FOLDER / "stream_gru.test.yml"
RUNBOOK = DEPLOY / "RUNBOOK.md"


def test_prometheus_understands_the_rules() -> None:
    """`promtool check rules` reports nothing."""
    checked = run_program(need("promtool"), "check", "rules", RULES)
    assert checked.returncode == 0, checked.stdout
    assert "SUCCESS" in checked.stdout


def test_prometheus_understands_its_configuration() -> None:
    """`promtool check config` reports nothing, nor for the container configuration with the same rules."""
    checked = run_program(need("promtool"), "check", "config", FOLDER / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout


def test_the_configuration_for_containers_is_the_same_but_for_the_target(tmp_path: Path) -> None:
    """Prometheus in the compose file does the same as on a machine, and the file is valid as well."""
    shutil.copy(RULES, tmp_path)
    shutil.copy(DEPLOY / "docker" / "prometheus.yml", tmp_path)
    checked = run_program(need("promtool"), "check", "config", tmp_path / "prometheus.yml")
    assert checked.returncode == 0, checked.stdout
    here, there = (yaml.safe_load((folder / "prometheus.yml").read_text()) for folder in (FOLDER, tmp_path))
    assert there["scrape_configs"][0]["static_configs"] == [{"targets": ["stream-gru:9723"]}]
    there["scrape_configs"][0]["static_configs"] = here["scrape_configs"][0]["static_configs"]
    assert here == there


def test_every_alert_fires_when_it_is_due_and_not_before() -> None:
    """`promtool test rules` runs every case of the test file."""
    tested = run_program(need("promtool"), "test", "rules", TESTS)
    assert tested.returncode == 0, tested.stdout


def test_every_alert_has_a_story_of_each_kind() -> None:
    """For each alert the test file has a time when it fires, and a case in which it never does."""
    fires: set[str] = set()
    quiet: set[str] = set()
    for story in yaml.safe_load(TESTS.read_text())["tests"]:
        asked = story["alert_rule_test"]
        (name,) = {moment["alertname"] for moment in asked}
        (fires if any(moment["exp_alerts"] for moment in asked) else quiet).add(name)
    assert fires == quiet == set(alerting_rules())


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("name", sorted(alerting_rules()))
def test_the_stories_would_notice_a_wrong_alert(name: str, always: bool, tmp_path: Path) -> None:
    """An alert that always fires, and one that never does, each fail the test of rules."""
    rule = {**alerting_rules()[name], "expr": "vector(1)" if always else "vector(0) > 0"}
    groups = [{"name": "wrong", "rules": [rule]}]  # the others would only cost time
    (tmp_path / RULES.name).write_text(yaml.safe_dump({"groups": groups}))
    stories = yaml.safe_load(TESTS.read_text())
    stories["tests"] = [story for story in stories["tests"] if story["alert_rule_test"][0]["alertname"] == name]
    (tmp_path / TESTS.name).write_text(yaml.safe_dump(stories))
    tested = run_program(need("promtool"), "test", "rules", tmp_path / TESTS.name)
    assert tested.returncode != 0
    assert name in tested.stdout


def test_rules_read_metrics_that_exist() -> None:
    """Every metric of every rule is exported, and every recorded name is recorded."""
    known = exported_series() | PROCESS
    expressions = [*recording_rules().values(), *(rule["expr"] for rule in alerting_rules().values())]
    for expression in expressions:
        assert metrics_of(expression) <= known, expression
        for name in re.findall(r"\b[a-z_]+:[a-z0-9_:]+", expression):
            assert name in recording_rules()


def test_every_alert_says_what_it_means_and_where_to_read_on() -> None:
    """Each alert is in CamelCase, has a severity, a summary, a description and its own section of the runbook."""
    headings = re.findall(r"(?m)^## (\w+)$", RUNBOOK.read_text())
    assert sorted(headings) == sorted(alerting_rules())
    for name, rule in alerting_rules().items():
        assert re.fullmatch(r"StreamGru([A-Z][a-z]+)+", name)
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"deploy/RUNBOOK.md#{name.lower()}"


def test_every_section_of_the_runbook_has_its_three_parts() -> None:
    """What it means, what to check, what to do; links inside the runbook have targets."""
    text = RUNBOOK.read_text()
    for section in re.split(r"(?m)^## ", text)[1:]:
        assert re.findall(r"(?m)^\*\*(Means|Check|Do)\*\*", section) == ["Means", "Check", "Do"], section
    anchors = {heading.lower().replace(" ", "-") for heading in re.findall(r"(?m)^## ([\w ]+)$", text)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
