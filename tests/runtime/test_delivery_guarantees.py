"""Every part of a configuration that weakens exactly-once is reported, one sentence each."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from stream_gru.config import Config
from stream_gru.config.connector import SourceTable
from stream_gru.config.run_schema import LimitsConfig, RunConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.sources.files import ReplaySourceConfig
from stream_gru.connectors.sources.mqtt import MqttSourceConfig
from stream_gru.runtime.resolved_config import ResolvedConfig, SourceSpec, delivery_warnings
from tests.support.models import make_bundle

MODEL = make_bundle()
MQTT = MqttSourceConfig(format="json", topics=["plant/#"])


def weak(source: SourceTable, *, time: str = "time", form: str = "json", limits: LimitsConfig | None = None) -> str:
    """All reported sentences of a plan with one source and no sinks."""
    fields = Fields.of(replace(MODEL.manifest.input, time=time), MODEL.manifest.channels)
    config = Config(limits=limits or LimitsConfig())
    run = RunConfig(bundle="model.sgb", state_dir="state")
    planned = SourceSpec("in", source, form, fields)
    return "\n".join(delivery_warnings(ResolvedConfig(Path("run.toml"), config, run, MODEL, (planned,), (), None, "")))


def test_a_plan_that_keeps_its_promise_is_not_blamed() -> None:
    """Acknowledged messages with a time, a state directory and no limits: no sentence."""
    assert weak(MQTT) == ""


def test_a_time_of_arrival_is_another_one_after_a_kill() -> None:
    """Whether [input] sets it or the format has no time; a recording contains the arrivals."""
    expected = "source in: records carry no time: one that is sent again gets its new time of arrival"
    assert weak(MQTT, time="") == expected
    assert weak(MQTT, form="number") == expected
    assert weak(ReplaySourceConfig(files=["a.csv"]), time="") == ""


def test_limits_are_not_stored() -> None:
    """Either limit is reported."""
    expected = "limits: recent rates are not stored: after a kill other samples may be dropped than without it"
    assert weak(MQTT, limits=LimitsConfig(total_hz=5)) == expected
    assert weak(MQTT, limits=LimitsConfig(per_stream_hz=5)) == expected
