from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.connectors.sinks.home_assistant import Discovery, device_id, discovery, duration, safe
from stream_gru.connectors.sinks.mqtt import MqttSinkConfig
from stream_gru.model.manifest import Manifest
from stream_gru.pipeline.pipeline import output_spec
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated

CONFIG = MqttSinkConfig(home_assistant=True)


def discovered_device(
    manifest: Manifest | None = None, stream: str = "p1", config: MqttSinkConfig = CONFIG
) -> dict[str, Any]:
    """The payload that Home Assistant reads."""
    _, payload = discovery(output_spec(manifest or calibrated(make_bundle()).manifest, 0.9), config, stream)
    found = json.loads(payload)
    assert isinstance(found, dict)
    return found


def test_the_device_of_a_stream() -> None:
    """Topic, device, origin, topic of outputs and availability."""
    topic, _ = discovery(output_spec(make_bundle().manifest, 0.9), CONFIG, "p1")
    assert topic == "homeassistant/device/stream_gru_p1/config"
    found = discovered_device()
    assert found["dev"]["ids"] == ["stream_gru_p1"]
    assert found["dev"]["name"] == "p1"
    assert found["o"]["name"] == "stream_gru"
    assert found["state_topic"] == "stream_gru/p1/prediction"
    assert [one["topic"] for one in found["availability"]] == ["stream_gru/status", "stream_gru/p1/availability"]
    assert found["availability_mode"] == "all"


def test_a_forecast_is_a_sensor_for_three_horizons() -> None:
    """First, middle and last; unit, template into our rows, bounds as attributes."""
    parts = discovered_device()["cmps"]
    assert {key for key in parts if key.startswith("forecast_c1")} == {f"forecast_c1_{n}" for n in (1, 2, 4)}
    sensor = parts["forecast_c1_4"]
    assert sensor["p"] == "sensor"
    assert sensor["name"] == "c1 in 4 s"
    assert sensor["value_template"] == '{{ value_json.forecast["c1"][3] }}'
    assert sensor["state_class"] == "measurement"
    assert sensor["unit_of_measurement"] == "V"
    assert sensor["unique_id"] == "stream_gru_p1_forecast_c1_4"
    assert sensor["default_entity_id"] == "sensor.stream_gru_p1_forecast_c1_4"
    assert 'value_json.interval["c1"][3][0]' in sensor["json_attributes_template"]
    assert sensor["expire_after"] == 60
    assert "object_id" not in json.dumps(parts)


def test_the_class_and_the_alarm() -> None:
    """An enumeration of the labels, and a problem that is off where rows have no alarm."""
    parts = discovered_device()["cmps"]
    assert parts["class"]["device_class"] == "enum"
    assert parts["class"]["options"] == ["class_0", "class_1", "class_2"] or len(parts["class"]["options"]) == 3
    assert parts["alarm"]["p"] == "binary_sensor"
    assert parts["alarm"]["device_class"] == "problem"
    assert "default(false)" in parts["alarm"]["value_template"]


def test_heads_that_a_model_has_not_are_not_there() -> None:
    """A missing head has no entity, and independent classes are a text."""
    assert set(discovered_device(make_bundle(horizon=0).manifest)["cmps"]) == {"class", "alarm"}
    plain = discovered_device(make_bundle(labels=0, horizon=1).manifest)["cmps"]
    assert set(plain) == {"forecast_c1_1", "forecast_c0_1", "alarm"}
    assert "json_attributes_topic" not in plain["forecast_c1_1"]
    several = discovered_device(make_bundle(class_activation="sigmoid").manifest)["cmps"]["class"]
    assert "device_class" not in several
    assert "join" in several["value_template"]
    one_of_two = discovered_device(make_bundle(labels=2, class_activation="logistic").manifest)["cmps"]["class"]
    assert one_of_two["options"] == ["label0", "label1"]
    assert one_of_two["value_template"] == "{{ value_json.class }}"


def test_values_expire_after_ten_outputs_that_did_not_come() -> None:
    """The period of the model, or of the throttle where that is longer; outputs sent only on change never expire."""
    manifest = msgspec.structs.replace(make_bundle().manifest, period_s=600.0)
    assert discovered_device(manifest)["cmps"]["alarm"]["expire_after"] == 6000
    slow = MqttSinkConfig(home_assistant=True, throttle="interval", interval_s=3600.0)
    assert discovered_device(manifest, config=slow)["cmps"]["alarm"]["expire_after"] == 36_000
    on_change = MqttSinkConfig(home_assistant=True, throttle="change")
    assert "expire_after" not in discovered_device(manifest, config=on_change)["cmps"]["alarm"]


def test_without_availability_of_streams_only_the_daemons_counts() -> None:
    """An empty availability_topic adds none."""
    config = MqttSinkConfig(home_assistant=True, availability_topic="")
    assert [one["topic"] for one in discovered_device(config=config)["availability"]] == ["stream_gru/status"]


NAMES = st.text("ab/_- .ö0", min_size=1, max_size=100)


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_names_that_are_refused_are_changed_without_meeting(names: list[str]) -> None:
    """Only letters, digits, _ and - remain, and different names stay different."""
    changed = [safe(name) for name in names]
    assert len(set(changed)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", name) for name in changed)


def test_two_gateways_with_the_same_streams_stay_apart() -> None:
    """Other output topics are other devices."""
    other = MqttSinkConfig(home_assistant=True, topic="plant2/{stream}")
    assert device_id(CONFIG, "p1") == "stream_gru_p1"
    assert device_id(other, "p1") != device_id(CONFIG, "p1")


@given(st.text(min_size=1, max_size=20))
def test_any_target_gives_a_template_that_quotes_it(name: str) -> None:
    """A name with quotes, braces or backslashes is quoted as a string in the template."""
    manifest = make_bundle(horizon=1, targets=1).manifest
    forecast, channel = manifest.forecast, manifest.channels[0]
    assert forecast is not None
    manifest = msgspec.structs.replace(
        manifest,
        forecast=msgspec.structs.replace(forecast, targets=[name]),
        channels=[msgspec.structs.replace(channel, name=name)],
    )
    parts = discovered_device(manifest)["cmps"]
    (sensor,) = [part for key, part in parts.items() if key.startswith("forecast")]
    quoted = re.fullmatch(r"\{\{ value_json\.forecast\[(.*)\]\[0\] \}\}", sensor["value_template"], re.DOTALL)
    assert quoted is not None
    assert json.loads(quoted.group(1)) == name


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1, "0.1 s"), (90, "90 s"), (600, "10 min"), (3600, "1 h"), (5400, "90 min")]
)
def test_times_in_words(seconds: float, text: str) -> None:
    """The largest unit that divides it."""
    assert duration(seconds) == text


def test_streams_are_announced_with_the_model_of_their_outputs() -> None:
    """None before the first output; a new one for another model; none when switched off."""
    first = output_spec(make_bundle().manifest, 0.9)
    found = Discovery(CONFIG)
    assert found.announcement("p1") is None
    assert [found.use(first), found.use(first)] == [True, False]
    assert found.announcement("p1") == discovery(first, CONFIG, "p1")
    other = replace(first, model_id="another")
    assert found.use(other)
    assert found.announcement("p1") == discovery(other, CONFIG, "p1")
    off = Discovery(MqttSinkConfig())
    off.use(first)
    assert (off.enabled, off.announcement("p1")) == (False, None)
