"""What must hold between the topics that one daemon subscribes to and publishes to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

from stream_gru.config.connector import SinkTable, SourceTable, TopicUse
from stream_gru.config.problems import KeyPath, Problem, dotted, quoted, shown
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.config.topic_filters import template_overlaps, templates_overlap
from stream_gru.config.train_schema import Config
from stream_gru.core.errors import ConfigError


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
