"""Commands, keys, metrics, reasons and make targets on the pages are those of the code, and complete."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from msgspec import inspect
from prometheus_client import CollectorRegistry

import stream_gru
from stream_gru.cli.main import COMMANDS
from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.train_schema import Config
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.types import DropReason, ResetReason
from stream_gru.model.bundle import load_bundle
from stream_gru.runtime.metrics import Metrics
from tests.docs.pages import GENERATED, GUIDES, PAGES, WRITTEN
from tests.support.paths import ROOT

EVERYWHERE = {
    **PAGES,
    **{
        name: (ROOT / name).read_text()
        for name in ("CONTRIBUTING.md", "SECURITY.md", "deploy/README.md", "deploy/RUNBOOK.md")
    },
}
ALL = "\n".join(WRITTEN.values())
# Words in code font that are no keys: columns of examples, names in outputs, programs, settings of other programs.
OTHER = {
    "stream_gru", "sample_data", "model_id", "flow_1", "flow_1_lower", "p_normal", "acc_y",
    "mosquitto_sub", "max_queued_messages", "max_packet_size", "message_size_limit", "set_tcp_nodelay", "runbook_url",
    "stream_gru_reset", "stream_gru_step",
}  # fmt: skip
VALUES = {"after_commit", "drop_oldest", "json_array", "json_vector", "line_protocol", "simple_rnn"}


def structs(kind: inspect.Type) -> Iterator[inspect.StructType]:
    """All structs inside a type."""
    if isinstance(kind, inspect.StructType):
        yield kind
        for field in kind.fields:
            yield from structs(field.type)
    for name in ("type", "item_type"):
        if isinstance(inner := getattr(kind, name, None), inspect.Type):
            yield from structs(inner)
    for each in getattr(kind, "types", ()):
        yield from structs(each)


def metric_names() -> set[str]:
    """The full names of all metrics."""
    bundle = load_bundle(ROOT / "sample_data" / "pump.bundle")
    metrics = Metrics(CollectorRegistry(), bundle.manifest, "litert", "0")
    suffix = {"counter": "_total", "info": "_info"}
    return {family.name + suffix.get(family.type, "") for family in metrics.registry.collect()}


TABLES = [Config, *CATALOG.tables(SourceTable), *CATALOG.tables(SinkTable)]
KEYS = {field.encode_name for kind in TABLES for struct in structs(inspect.type_info(kind)) for field in struct.fields}
METRICS = metric_names()
SHORT_METRICS = {name.removeprefix("stream_gru_").removesuffix("_total") for name in METRICS}
REASONS = {reason.text for reason in (*DropReason, *ResetReason)}


def test_every_command_is_explained_on_a_page() -> None:
    """Every command is on a page other than the generated reference."""
    for name in COMMANDS:
        assert re.search(rf"`(stream-gru )?{name}\b|^stream-gru {name}\b", ALL, re.MULTILINE), name


def test_every_command_on_a_page_exists() -> None:
    """No page names an unknown command."""
    for page, text in EVERYWHERE.items():
        for name in re.findall(r"(?:`|^|bin/)stream-gru ([a-z]+)", text, re.MULTILINE):
            assert name in COMMANDS, (page, name)


def test_every_metric_on_a_page_exists_and_each_is_in_the_reference() -> None:
    """Names of metrics are those of the code."""
    of_the_c_export = {"stream_gru_reset", "stream_gru_step"}
    for page, text in EVERYWHERE.items():
        named = {name for name in re.findall(r"\bstream_gru_[a-z0-9_]+", text) if not name.endswith("_")}
        histograms = {re.sub(r"_(bucket|count|sum)$", "", name) for name in named}
        assert histograms - METRICS - of_the_c_export == set(), page
    assert set(re.findall(r"`(stream_gru_\w+)`", PAGES["docs/reference/metrics.md"])) == METRICS


def test_every_reason_is_explained() -> None:
    """Why a sample is dropped and why a state is reset."""
    for reason in [*DropReason, *(reason for reason in ResetReason if reason)]:
        assert f"`{reason.text}`" in PAGES["docs/data-handling.md"], reason


@pytest.mark.parametrize("page", sorted(set(EVERYWHERE) - GENERATED - GUIDES))
def test_every_key_on_a_page_exists(page: str) -> None:
    """Words in code font with an underscore are keys, metrics, reasons, or names of the Python interface."""
    known = KEYS | VALUES | METRICS | SHORT_METRICS | REASONS | set(stream_gru.__all__) | OTHER
    text = re.sub(r"^\| `[\w/]+\.py` \|.*$", "", EVERYWHERE[page], flags=re.MULTILINE)  # call lists have their own test
    words = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)(?: = [^`]+)?`", text))
    assert words - known == set()


def test_every_public_name_is_on_the_page_of_the_python_interface() -> None:
    """And no other one."""
    table = PAGES["docs/python-api.md"].partition("| name | what it is |")[2].partition("\n\n")[0]
    cells = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)", cells)) == set(stream_gru.__all__) - {"__version__"}


def test_every_make_target_on_a_page_exists() -> None:
    """`make x` is a target."""
    makefile = (ROOT / "Makefile").read_text()
    for page, text in EVERYWHERE.items():
        for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)
