"""MQTT topics: filters with names in braces for levels, and which topics two parts of a daemon share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from stream_gru.config.connector import SinkTable, SourceTable, TopicUse
from stream_gru.config.problems import KeyPath, Problem, dotted, quoted, shown
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.config.train_schema import Config
from stream_gru.core.errors import ConfigError

_NAMED = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MAX_BYTES = 65_535
# One or more levels, for the name of a stream in a topic; no filter contains this character.
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
            raise ConfigError(f"topic: expected {problem}, got {shown(text)}")
        self._levels = text.split("/")
        named = [_NAMED.fullmatch(level) for level in self._levels]
        self._names = [found.group(1) if found else "" for found in named]
        self.filter = "/".join("+" if name else level for name, level in zip(self._names, self._levels, strict=True))
        self.names = tuple(name for name in self._names if name)

    def match(self, topic: str) -> dict[str, str] | None:
        """The named levels of ``topic``; None when it does not match."""
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
        """The name of the stream: the filled template, else all named levels but the channel, joined by ``/``.

        Without such levels it is the topic without the level of the channel.
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


def pattern_problems(topics: Sequence[str], stream_id: str) -> Iterator[Problem]:
    """Yield what is wrong with the keys ``topics`` and ``stream_id`` of a source."""
    if not topics:
        yield Problem(("topics",), 'at least one topic, such as "sensors/{stream}/data"', "none")
    patterns: dict[int, TopicPattern] = {}
    for index, text in enumerate(topics):
        problem = _filter_problem(text)
        if problem:
            yield Problem(("topics", index), problem, shown(text))
            continue
        one = patterns[index] = TopicPattern(text)
        for other in list(patterns.values())[:-1]:
            if filters_overlap(one.filter, other.filter):
                expected = f"a filter that shares no topic with {quoted(other.text)}, as messages would come twice"
                yield Problem(("topics", index), expected, shown(text))
        missing = sorted(set(_NAMED.findall(stream_id)) - set(one.names))
        if missing:
            names = ", ".join("{" + name + "}" for name in missing)
            yield Problem(("stream_id",), f"names that topic {quoted(text)} has", names)
    if stream_id and set("{}") & set(_NAMED.sub("", stream_id)):
        yield Problem(("stream_id",), "names in braces, such as {stream}", f"a single brace: {shown(stream_id)}")


def topic_patterns(topics: Sequence[str], stream_id: str) -> tuple[TopicPattern, ...]:
    """The patterns of a source.  Raises ConfigError with all that `pattern_problems` finds."""
    problems = [problem.text for problem in pattern_problems(topics, stream_id)]
    if problems:
        raise ConfigError(*problems)
    return tuple(map(TopicPattern, topics))


def _filter_problem(text: str) -> str:
    """What was expected of a filter that may have names in braces; empty when it is valid."""
    levels = text.split("/")
    if not text or "\0" in text or len(text.encode(errors="replace")) > _MAX_BYTES:
        return f"1 to {_MAX_BYTES} bytes without NUL"
    if levels[0] in ("$share", "$queue"):
        return "a filter without $share: a shared subscription spreads the samples of one device over several clients"
    if "#" in text and ("#" in text[:-1] or levels[-1] != "#"):
        return "# only as the last level"
    for level in levels:
        if "+" in level and level != "+":
            return f"+ only as a whole level, not in {quoted(level)}"
        if set("{}") & set(level) and not _NAMED.fullmatch(level):
            return f"a name in braces only as a whole level, such as {{stream}}, not in {quoted(level)}"
    names = [level for level in levels if _NAMED.fullmatch(level)]
    if len(set(names)) < len(names):
        return "each name in braces once"
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
    """The stream of this topic; "" when the topic does not match the template."""
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


def templates_overlap(first: str, second: str) -> bool:
    """Whether two templates can give one topic, each for any stream; a stream's name may hold any character."""
    if "{stream}" not in first:
        return first == second or stream_in(second, first) != ""
    if "{stream}" not in second:
        return stream_in(first, second) != ""
    # Each name can take up what the other template has in its middle: only the ends decide.
    (head, _, rest), (other_head, _, other_rest) = first.partition("{stream}"), second.partition("{stream}")
    tail, other_tail = rest.rpartition("{stream}")[2], other_rest.rpartition("{stream}")[2]
    heads = head.startswith(other_head) or other_head.startswith(head)
    return heads and (tail.endswith(other_tail) or other_tail.endswith(tail))


def _overlap(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    for one, other in ((a, b), (b, a)):
        if one[0].startswith("$") and other[0] in ("+", "#", _MANY):
            return False

    seen: set[tuple[int, int]] = set()
    waiting = [(0, 0)]  # levels from which both may match
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


class _Use(NamedTuple):
    """A topic or filter on one broker, and the key that asks for it."""

    broker: tuple[str, int]
    topic: str
    path: KeyPath
    exclusive: bool = True

    @property
    def words(self) -> str:
        return f"{dotted(self.path)} = {quoted(self.topic)}"


def topic_problems(config: Config) -> Iterator[Problem]:
    """Yield topics on which the daemon would read its own outputs, and those that two outputs share."""
    filters = [use for i, source in enumerate(config.source) for use in _uses(config, ("source", i), source)]
    topics = [use for i, sink in enumerate(config.sink) for use in _uses(config, ("sink", i), sink)]
    commands = _commands(config)
    responses = [command._replace(topic=f"{command.topic}/response") for command in commands]
    yield from _loops(topics, [*filters, *commands], "the daemon would read its own outputs")
    yield from _loops(commands, filters, "the daemon would read commands as samples")
    yield from _loops(responses, filters, "the daemon would read its own responses")
    topics += responses
    for first, second in combinations(topics, 2):
        exclusive = first.exclusive or second.exclusive
        if exclusive and first.broker == second.broker and templates_overlap(first.topic, second.topic):
            expected = f"a topic that differs from {first.words}, whatever the streams are called"
            yield Problem(second.path, expected, shown(second.topic))


def _loops(topics: list[_Use], filters: list[_Use], why: str) -> Iterator[Problem]:
    for topic in topics:
        for one in filters:
            if topic.broker == one.broker and template_overlaps(topic.topic, one.topic):
                yield Problem(topic.path, f"a topic that {one.words} does not match, as {why}", shown(topic.topic))


def _uses(config: Config, path: KeyPath, table: SourceTable | SinkTable) -> Iterator[_Use]:
    uses: Iterator[TopicUse] = table.subscriptions() if isinstance(table, SourceTable) else table.publications()
    for use in uses:
        for broker in _broker(config, table.broker_name):
            yield _Use(broker, use.topic, (*path, *use.path), use.exclusive)


def _commands(config: Config) -> list[_Use]:
    if not config.control.mqtt:
        return []
    topic, brokers = config.control.topic, _broker(config, config.control.broker)
    return [_Use(broker, topic, ("control", "topic")) for broker in brokers]


def _broker(config: Config, name: str | None) -> Iterator[tuple[str, int]]:
    """Host and port of a broker; nothing where it is missing or wrong, which other rules report."""
    for broker in config.broker:
        if name in ("", broker.name):
            yield from _address(broker)
            return


def _address(broker: BrokerConfig) -> Iterator[tuple[str, int]]:
    try:
        yield broker.host_and_port()
    except ConfigError:
        return
