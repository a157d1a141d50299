"""MQTT discovery of Home Assistant: one device with sensors for each stream.

Source: https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import orjson

from stream_gru.config.topic_filters import fill_stream
from stream_gru.core.types import OutputSpec

if TYPE_CHECKING:  # the module of the table imports this one
    from stream_gru.connectors.sinks.mqtt import MqttSinkConfig

DEFAULT_TOPIC = "stream_gru/{stream}/prediction"
"""The default of ``topic``: it is left out of the ids of devices."""
_REFUSED = re.compile(r"[^a-zA-Z0-9_-]")
_ALARM = "{{ 'ON' if value_json.alarm | default(false) else 'OFF' }}"

Component = dict[str, Any]


class Discovery:
    """Announces streams to Home Assistant, where the configuration asks for it."""

    def __init__(self, config: MqttSinkConfig) -> None:
        self._config = config
        self._spec: OutputSpec | None = None
        self.enabled = config.home_assistant
        self.birth_topic = f"{config.discovery_prefix}/status"

    def use(self, spec: OutputSpec) -> bool:
        """Announce streams as this model's from now on; True when it is another one than before."""
        same, self._spec = self._spec == spec, spec
        return not same

    def announcement(self, stream: str) -> tuple[str, bytes] | None:
        """Topic and payload that announce a stream; None before the first output, or when disabled."""
        return discovery(self._spec, self._config, stream) if self.enabled and self._spec is not None else None


def discovery(spec: OutputSpec, config: MqttSinkConfig, stream: str) -> tuple[str, bytes]:
    """Topic and payload of the discovery message of a stream: its forecasts, its class and its alarm."""
    device = device_id(config, stream)
    components: dict[str, Component] = {}
    for key, component in [*_forecasts(spec, config, stream), *_classes(spec), *_alarm()]:
        component["unique_id"] = f"{device}_{key}"
        entity = re.sub(r"[^a-z0-9_]", "_", component["unique_id"].lower())
        component["default_entity_id"] = f"{component['p']}.{entity}"
        # A value that is sent on change stays valid until it changes; availability shows whether the stream sends.
        if config.throttle != "change":
            component["expire_after"] = _expires_s(spec, config)
        components[key] = component
    topics = [config.status_topic]
    if config.availability_topic:
        topics.append(fill_stream(config.availability_topic, stream))
    payload = {
        "dev": {"ids": [device], "name": stream, "mf": "stream_gru", "mdl": f"model {spec.model_id}"},
        "o": {"name": "stream_gru"},
        "state_topic": fill_stream(config.topic, stream),
        "availability": [{"topic": topic} for topic in topics],
        "availability_mode": "all",
        "cmps": components,
    }
    return discovery_topic(config, device), orjson.dumps(payload)


def discovery_topic(config: MqttSinkConfig, device: str) -> str:
    """The discovery topic of a device."""
    return f"{config.discovery_prefix}/device/{device}/config"


def device_id(config: MqttSinkConfig, stream: str) -> str:
    """A device id that Home Assistant accepts; it differs by stream and by topic of outputs."""
    plain = config.topic == DEFAULT_TOPIC
    return safe(f"stream_gru_{stream}", "" if plain else config.topic)


def safe(name: str, besides: str = "") -> str:
    """The name with only letters, digits, ``_`` and ``-``, and with a hash where that changes it."""
    clean = _REFUSED.sub("_", name)
    if clean == name and not besides:
        return name
    digest = hashlib.sha256("\n".join((name, besides)).encode()).hexdigest()
    return f"{clean[:64]}_{digest[:10]}"


def _forecasts(spec: OutputSpec, config: MqttSinkConfig, stream: str) -> Iterator[tuple[str, Component]]:
    """A sensor for each target, at the first, the middle and the last horizon; its bounds are attributes."""
    last = spec.horizon
    units = dict(zip(spec.targets, spec.units, strict=False))
    for target in spec.targets:
        for step in sorted({1, (last + 1) // 2, last}):
            place = f"[{json.dumps(target, ensure_ascii=False)}][{step - 1}]"
            component: Component = {
                "p": "sensor",
                "name": f"{target} in {duration(step * spec.period_s)}",
                "value_template": f"{{{{ value_json.forecast{place} }}}}",
                "state_class": "measurement",
            }
            if units.get(target):
                component["unit_of_measurement"] = units[target]
            if spec.intervals:
                component["json_attributes_topic"] = fill_stream(config.topic, stream)
                component["json_attributes_template"] = (
                    "{% if value_json.interval is defined %}"
                    f"{{{{ {{'lower': value_json.interval{place}[0], 'upper': value_json.interval{place}[1], "
                    "'level': value_json.level} | tojson }}{% else %}{}{% endif %}"
                )
            yield f"forecast_{safe(target)}_{step}", component


def _classes(spec: OutputSpec) -> Iterator[tuple[str, Component]]:
    if not spec.labels:
        return
    if spec.exclusive:
        yield (
            "class",
            {
                "p": "sensor",
                "name": "class",
                "device_class": "enum",
                "options": list(spec.labels),
                "value_template": "{{ value_json.class }}",
            },
        )
    else:
        yield "class", {"p": "sensor", "name": "class", "value_template": "{{ value_json.class | join(', ') }}"}


def _alarm() -> Iterator[tuple[str, Component]]:
    yield "alarm", {"p": "binary_sensor", "name": "alarm", "device_class": "problem", "value_template": _ALARM}


def _expires_s(spec: OutputSpec, config: MqttSinkConfig) -> int:
    """Seconds without an output after which a value expires."""
    every_s = max(spec.period_s, config.interval_s if config.throttle == "interval" else 0.0)
    return max(60, round(10 * every_s))


def duration(seconds: float) -> str:
    """A duration as text: ``90 s``, ``10 min``, ``2 h``."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
