"""Topics and filters: names in braces for levels, what two filters have in common, which topics would make a loop."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlsplit

from stream_gru.config.run_schema import BrokerConfig, ControlConfig, MqttSinkConfig, MqttSourceConfig
from stream_gru.core.errors import ConfigError

_NAMED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MAX_BYTES = 65_535
# One or more levels: what a stream's name becomes in a topic.  No filter can hold it.
_MANY = "\0"
_DEEPEST = 8


class TopicPattern:
    """A filter whose single levels may have names: ``sensors/{stream}/data`` is the filter ``sensors/+/data``.

    Raises ConfigError when it is no valid filter, or one that shares messages with other clients (``$share``).
    """

    def __init__(self, text: str) -> None:
        self.text = text
        problem = _filter_problem(text)
        if problem:
            raise ConfigError(f"topic {text!r}: {problem}")
        self._levels = text.split("/")
        named = [_NAMED.fullmatch(level) for level in self._levels]
        self._names = [found.group(1) if found else "" for found in named]
        self.filter = "/".join("+" if name else level for name, level in zip(self._names, self._levels, strict=True))
        self.names = tuple(name for name in self._names if name)

    def match(self, topic: str) -> dict[str, str] | None:
        """What the named levels are in ``topic``, or None when it does not match."""
        levels = topic.split("/")
        if topic.startswith("$") and (self._names[0] or self._levels[0] in "+#"):
            return None
        found: dict[str, str] = {}
        for index, (name, wanted) in enumerate(zip(self._names, self._levels, strict=True)):
            if wanted == "#":
                return found
            if index == len(levels):
                return None
            if name:
                found[name] = levels[index]
            elif wanted not in ("+", levels[index]):
                return None
        return found if len(levels) == len(self._levels) else None

    def stream_of(self, topic: str, found: Mapping[str, str], template: str) -> str:
        """The name of the stream: the template filled in; without one all named levels but the channel.

        Without such levels it is the whole topic, less the level of the channel.
        """
        if template:
            return _NAMED.sub(lambda name: found[name.group(1)], template)
        parts = [found[name] for name in self.names if name != "channel"]
        if parts:
            return "/".join(parts)
        if "channel" not in found:
            return topic
        at = self._names.index("channel")
        levels = topic.split("/")
        return "/".join(levels[:at] + levels[at + 1 :])


def topic_patterns(topics: Sequence[str], stream_id: str) -> tuple[TopicPattern, ...]:
    """The patterns of a source.  Raises ConfigError with all that is wrong with them, or with ``stream_id``."""
    problems: list[str] = []
    patterns: list[TopicPattern] = []
    if not topics:
        problems.append('topics: expected at least one topic, such as "sensors/{stream}/data"')
    for text in topics:
        try:
            patterns.append(TopicPattern(text))
        except ConfigError as error:
            problems += error.problems
    for index, one in enumerate(patterns):
        problems += [
            f"topics {other.text!r} and {one.text!r}: a message could match both and would come twice"
            for other in patterns[:index]
            if filters_overlap(one.filter, other.filter)
        ]
        missing = sorted(set(_NAMED.findall(stream_id)) - set(one.names))
        if missing:
            names = ", ".join("{" + name + "}" for name in missing)
            problems.append(f"stream_id {stream_id!r}: expected names that topic {one.text!r} has, got {names}")
    if stream_id and set("{}") & set(_NAMED.sub("", stream_id)):
        problems.append(f"stream_id {stream_id!r}: expected names in braces, such as {{stream}}, got a single brace")
    if problems:
        raise ConfigError(*problems)
    return tuple(patterns)


def _filter_problem(text: str) -> str:
    """What is wrong with a filter that may have names in braces; "" when nothing is."""
    levels = text.split("/")
    if not text or "\0" in text or len(text.encode(errors="replace")) > _MAX_BYTES:
        return f"expected 1 to {_MAX_BYTES} bytes without NUL"
    if levels[0] in ("$share", "$queue"):
        return "expected a topic of our own: a shared subscription spreads one device's samples over several clients"
    if "#" in text and ("#" in text[:-1] or levels[-1] != "#"):
        return "expected # only as the last level"
    for level in levels:
        if "+" in level and level != "+":
            return f"expected + as a whole level, got {level!r}"
        if set("{}") & set(level) and not _NAMED.fullmatch(level):
            return f"expected a name in braces as a whole level, such as {{stream}}, got {level!r}"
    names = [level for level in levels if _NAMED.fullmatch(level)]
    if len(set(names)) < len(names):
        return "expected each name in braces once"
    return ""


def fill_stream(template: str, stream: str) -> str:
    """The topic of one stream."""
    return template.replace("{stream}", stream)


def stream_filters(template: str) -> list[str]:
    """Filters for the topics of all streams whose names are up to eight levels long."""
    filters = []
    for deep in range(1, _DEEPEST + 1):
        levels: list[str] = []
        for level in template.split("/"):
            names = level.count("{stream}")
            levels += ["+"] * (1 + names * (deep - 1)) if names else [level]
        filters.append("/".join(levels))
    return filters


def stream_in(template: str, topic: str) -> str:
    """The stream whose topic this is; "" when it is none of that template."""
    first, *others = (re.escape(part) for part in template.split("{stream}"))
    if not others:
        return ""
    found = re.fullmatch(first + "(.+)" + r"\1".join(others), topic, re.DOTALL)
    return found[1] if found else ""


def filters_overlap(first: str, second: str) -> bool:
    """Whether there is a topic that matches both filters; exact, ``$`` topics included."""
    return _overlap(tuple(first.split("/")), tuple(second.split("/")))


def template_overlaps(template: str, filter_text: str) -> bool:
    """Whether a topic made of ``template`` can match a filter; a stream's name may be several levels long."""
    levels = (_MANY if "{stream}" in level else level for level in template.split("/"))
    return _overlap(tuple(levels), tuple(filter_text.split("/")))


def _overlap(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    for one, other in ((a, b), (b, a)):
        if one[0].startswith("$") and other[0] in ("+", "#", _MANY):
            return False

    seen: set[tuple[int, int]] = set()
    waiting = [(0, 0)]  # levels from which on the two may meet
    while waiting:
        place = i, j = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        left, right = a[i : i + 1], b[j : j + 1]
        if left == right == () or "#" in (*left, *right):
            return True
        if left and right and (left == right or {"+", _MANY} & {*left, *right}):
            waiting.append((i + 1, j + 1))
            waiting += [(i, j + 1)] * (left == (_MANY,)) + [(i + 1, j)] * (right == (_MANY,))
    return False


def refuse_loops(
    sources: Sequence[tuple[str, BrokerConfig | None, MqttSourceConfig]],
    sinks: Sequence[tuple[str, BrokerConfig | None, MqttSinkConfig]],
    control: tuple[BrokerConfig | None, ControlConfig],
) -> None:
    """Refuse topics that cannot be used, and those on which the daemon would hear itself.

    Sources and sinks come with their names and brokers.  Raises ConfigError with every problem.
    """
    control_broker, commands = control
    problems: list[str] = []
    hears: list[tuple[str, BrokerConfig, str]] = []
    for name, broker, source in sources:
        try:
            patterns = topic_patterns(source.topics, source.stream_id)
        except ConfigError as error:
            problems += [f"source {name}: {problem}" for problem in error.problems]
            continue
        if broker is not None:
            hears += [(f"source {name}: topic {pattern.text!r}", broker, pattern.filter) for pattern in patterns]
    says: list[tuple[str, BrokerConfig, str]] = []
    for name, broker, sink in sinks:
        problems += [f"sink {name}: {problem}" for problem in _sink_problems(sink)]
        if broker is not None:
            says += [(f"sink {name}: {key} {topic!r}", broker, topic) for key, topic in _sink_topics(sink)]
    if control_broker is not None:
        own = f"control: topic {commands.topic!r}"
        says.append((own, control_broker, f"{commands.topic}/response"))
        problems += _clashes(says, [(own, control_broker, commands.topic)])
        says.append((own, control_broker, commands.topic))
    problems += _clashes(says, hears)
    if problems:
        raise ConfigError(*problems)


def _clashes(
    says: Sequence[tuple[str, BrokerConfig, str]], hears: Sequence[tuple[str, BrokerConfig, str]]
) -> Iterator[str]:
    for saying, its_broker, topic in says:
        for hearing, broker, filter_text in hears:
            if host_and_port(broker) == host_and_port(its_broker) and template_overlaps(topic, filter_text):
                yield f"{saying} and {hearing}: expected topics that never meet, as the daemon would read what it wrote"


def _sink_topics(sink: MqttSinkConfig) -> Iterator[tuple[str, str]]:
    yield "topic", sink.topic
    yield "status_topic", sink.status_topic
    if sink.availability_topic:
        yield "availability_topic", sink.availability_topic
    if sink.home_assistant:
        yield "discovery_prefix", f"{sink.discovery_prefix}/device/{{stream}}/config"


def _sink_problems(sink: MqttSinkConfig) -> Iterator[str]:
    for key, topic in _sink_topics(sink):
        rest = topic.replace("{stream}", "")
        if set("{}") & set(rest) and key != "discovery_prefix":
            yield f"{key} {topic!r}: expected no braces but {{stream}}"
        if set("+#\0") & set(rest):
            yield f"{key} {topic!r}: expected a topic without + and #"
        if topic.startswith("$"):
            yield f"{key} {topic!r}: expected a topic that does not begin with $: those are the broker's own"
    if sink.home_assistant and "{stream}" not in sink.topic:
        yield f"topic {sink.topic!r}: expected {{stream}} in it: Home Assistant reads each device from its own topic"
    if "{stream}" in sink.status_topic:
        yield f"status_topic {sink.status_topic!r}: expected no {{stream}}: it is about the daemon"
    if sink.availability_topic and "{stream}" not in sink.availability_topic:
        yield f"availability_topic {sink.availability_topic!r}: expected {{stream}} in it, or an empty text for none"


def host_and_port(broker: BrokerConfig) -> tuple[str, int]:
    """Where a broker is; 1883 and 8883 are the ports of ``mqtt`` and ``mqtts``."""
    parts = urlsplit(broker.url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0 or not parts.hostname:
        raise ConfigError(f"broker {broker.name}: url {broker.url!r}: expected a host and a port from 1 to 65535")
    return parts.hostname, port or (8883 if parts.scheme == "mqtts" else 1883)
