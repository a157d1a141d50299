"""Devices and sensors that appear in Home Assistant by themselves: one device for each stream.

Source: https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from stream_gru.config.run_schema import MqttSinkConfig
from stream_gru.config.topic_filters import fill_stream
from stream_gru.model.manifest import Manifest

_REFUSED = re.compile(r"[^a-zA-Z0-9_-]")
_ALARM = "{{ 'ON' if value_json.alarm | default(false) else 'OFF' }}"

Component = dict[str, Any]


def discovery(manifest: Manifest, config: MqttSinkConfig, stream: str) -> tuple[str, bytes]:
    """Topic and payload that make Home Assistant know a stream, its forecasts, its class and its alarm."""
    device = device_id(config, stream)
    components: dict[str, Component] = {}
    for key, component in [*_forecasts(manifest, config, stream), *_classes(manifest), *_alarm()]:
        component["unique_id"] = f"{device}_{key}"
        entity = re.sub(r"[^a-z0-9_]", "_", component["unique_id"].lower())
        component["default_entity_id"] = f"{component['p']}.{entity}"
        # What is told on change only holds until it changes; availability says whether anybody is there.
        if config.throttle != "change":
            component["expire_after"] = _expires_s(manifest, config)
        components[key] = component
    topics = [config.status_topic]
    if config.availability_topic:
        topics.append(fill_stream(config.availability_topic, stream))
    payload = {
        "dev": {"ids": [device], "name": stream, "mf": "stream_gru", "mdl": f"model {manifest.model_id}"},
        "o": {"name": "stream_gru"},
        "state_topic": fill_stream(config.topic, stream),
        "availability": [{"topic": topic} for topic in topics],
        "availability_mode": "all",
        "cmps": components,
    }
    return f"{config.discovery_prefix}/device/{device}/config", orjson.dumps(payload)


def device_id(config: MqttSinkConfig, stream: str) -> str:
    """A name for the device that Home Assistant takes; different for each stream, and for each topic of outputs."""
    plain = config.topic == MqttSinkConfig().topic
    return safe(f"stream_gru_{stream}", "" if plain else config.topic)


def safe(name: str, besides: str = "") -> str:
    """The name with only letters, digits, ``_`` and ``-``; where that changes it, a hash keeps it different."""
    clean = _REFUSED.sub("_", name)
    if clean == name and not besides:
        return name
    digest = hashlib.sha256("\n".join((name, besides)).encode()).hexdigest()
    return f"{clean[:64]}_{digest[:10]}"


def _forecasts(manifest: Manifest, config: MqttSinkConfig, stream: str) -> Iterator[tuple[str, Component]]:
    """A sensor for each target, at the first, the middle and the last horizon; its bounds are attributes."""
    if manifest.forecast is None:
        return
    last = manifest.forecast.horizon
    units = {channel.name: channel.unit for channel in manifest.channels}
    for target in manifest.forecast.targets:
        for step in sorted({1, (last + 1) // 2, last}):
            place = f"[{json.dumps(target, ensure_ascii=False)}][{step - 1}]"
            component: Component = {
                "p": "sensor",
                "name": f"{target} in {duration(step * manifest.period_s)}",
                "value_template": f"{{{{ value_json.forecast{place} }}}}",
                "state_class": "measurement",
            }
            if units.get(target):
                component["unit_of_measurement"] = units[target]
            if manifest.calibration is not None or manifest.forecast.quantiles:
                component["json_attributes_topic"] = fill_stream(config.topic, stream)
                component["json_attributes_template"] = (
                    "{% if value_json.interval is defined %}"
                    f"{{{{ {{'lower': value_json.interval{place}[0], 'upper': value_json.interval{place}[1], "
                    "'level': value_json.level} | tojson }}{% else %}{}{% endif %}"
                )
            yield f"forecast_{safe(target)}_{step}", component


def _classes(manifest: Manifest) -> Iterator[tuple[str, Component]]:
    if manifest.classes is None:
        return
    if manifest.classes.activation != "sigmoid":
        yield (
            "class",
            {
                "p": "sensor",
                "name": "class",
                "device_class": "enum",
                "options": list(manifest.classes.labels),
                "value_template": "{{ value_json.class }}",
            },
        )
    else:
        yield "class", {"p": "sensor", "name": "class", "value_template": "{{ value_json.class | join(', ') }}"}


def _alarm() -> Iterator[tuple[str, Component]]:
    yield "alarm", {"p": "binary_sensor", "name": "alarm", "device_class": "problem", "value_template": _ALARM}


def _expires_s(manifest: Manifest, config: MqttSinkConfig) -> int:
    """After how long without an output a value counts for nothing."""
    every_s = max(manifest.period_s, config.interval_s if config.throttle == "interval" else 0.0)
    return max(60, round(10 * every_s))


def duration(seconds: float) -> str:
    """A time in words: ``90 s``, ``10 min``, ``2 h``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
