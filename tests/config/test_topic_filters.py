from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from paho.mqtt.client import topic_matches_sub

from stream_gru.config.run_schema import BrokerConfig, ControlConfig
from stream_gru.config.topic_filters import (
    TopicPattern,
    fill_stream,
    filters_overlap,
    stream_filters,
    stream_in,
    template_overlaps,
    templates_overlap,
    topic_patterns,
    topic_problems,
)
from stream_gru.config.train_schema import Config
from stream_gru.connectors.mqtt.auth import client_id
from stream_gru.connectors.sinks.mqtt import MqttSinkConfig
from stream_gru.connectors.sources.mqtt import MqttSourceConfig
from stream_gru.core.errors import ConfigError

BROKER = BrokerConfig(url="mqtt://gateway:1883", name="one")
SAME = BrokerConfig(url="mqtt://gateway", name="two")
OTHER = BrokerConfig(url="mqtt://elsewhere", name="three")
NO_CONTROL = ControlConfig()
LEVELS = st.sampled_from(["a", "b", "", "$x", "+"])
FILTERS = (
    st.tuples(st.lists(LEVELS, min_size=1, max_size=4), st.booleans())
    .map(lambda parts: "/".join([*parts[0][: 3 if parts[1] else 4], *(["#"] if parts[1] else [])]))
    .filter(bool)
)
TOPICS = ["/".join(levels) for n in range(1, 6) for levels in itertools.product(["a", "b", "", "$x"], repeat=n)]


def mqtt_source_of(*topics: str, stream_id: str = "") -> MqttSourceConfig:
    """A source of these topics."""
    return MqttSourceConfig(topics=list(topics), format="json", stream_id=stream_id)


@pytest.mark.parametrize(
    ("pattern", "topic", "found"),
    [
        ("sensors/{stream}/data", "sensors/p1/data", {"stream": "p1"}),
        ("sensors/{stream}/data", "sensors/p1/x/data", None),
        ("sensors/{stream}/data", "sensors/p1", None),
        ("{site}/{stream}/{channel}", "a/b/c", {"site": "a", "stream": "b", "channel": "c"}),
        ("{stream}", "$SYS", None),
        ("a/{stream}/#", "a/p1", {"stream": "p1"}),
        ("a/{stream}/#", "a/p1/x/y", {"stream": "p1"}),
        ("a/+/b", "a/x/b", {}),
        ("#", "a/b", {}),
        ("#", "$SYS/x", None),
        ("$SYS/{stream}", "$SYS/x", {"stream": "x"}),
        ("/{stream}", "/x", {"stream": "x"}),
        ("/{stream}", "x", None),
    ],
)
def test_names_in_braces_stand_for_one_level(pattern: str, topic: str, found: dict[str, str] | None) -> None:
    """The levels of the pattern, or None."""
    assert TopicPattern(pattern).match(topic) == found


@given(FILTERS, st.sampled_from(TOPICS))
def test_a_pattern_matches_what_its_filter_matches(text: str, topic: str) -> None:
    """Filters match as a broker matches them."""
    assert (TopicPattern(text).match(topic) is not None) == topic_matches_sub(text, topic)


def test_the_filter_of_a_pattern() -> None:
    """Each name becomes a plus."""
    assert TopicPattern("a/{stream}/b/{channel}/#").filter == "a/+/b/+/#"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "1 to 65535 bytes"),
        ("a\0b", "without NUL"),
        ("x" * 70_000, "1 to 65535 bytes"),
        ("a/#/b", "# only as the last level"),
        ("a/b#", "# only as the last level"),
        ("a/b+", "\\+ only as a whole level"),
        ("a/dev-{stream}", "braces only as a whole level"),
        ("a/{}", "braces only as a whole level"),
        ("a/{stream", "braces only as a whole level"),
        ("{a}/{a}", "each name in braces once"),
        ("$share/group/a", "shared subscription"),
    ],
)
def test_a_pattern_that_is_no_filter(text: str, words: str) -> None:
    """Each error has what was expected."""
    with pytest.raises(ConfigError, match=words):
        TopicPattern(text)


@pytest.mark.parametrize(
    ("pattern", "template", "topic", "stream"),
    [
        ("s/{stream}/data", "", "s/p1/data", "p1"),
        ("{site}/{stream}/{channel}", "", "a/p1/flow", "a/p1"),
        ("{site}/{stream}/{channel}", "{stream}.{site}", "a/p1/flow", "p1.a"),
        ("a/+/b", "", "a/x/b", "a/x/b"),
        ("lab/{channel}", "", "lab/flow", "lab"),
        ("lab/{channel}", "bench", "lab/flow", "bench"),
    ],
)
def test_the_name_of_a_stream(pattern: str, template: str, topic: str, stream: str) -> None:
    """The template, else all names but the channel, else the topic without the channel's level."""
    (one,) = topic_patterns([pattern], template)
    found = one.match(topic)
    assert found is not None
    assert one.stream_of(topic, found, template) == stream


@pytest.mark.parametrize(
    ("topics", "template", "words"),
    [
        ([], "", "at least one topic"),
        (["a/{stream}", "a/b"], "", "would come twice"),
        (["a/{stream}"], "{device}", r'names that topic "a/\{stream\}" has, got \{device\}'),
        (["a/{stream}"], "{stream", "single brace"),
    ],
)
def test_topics_of_a_source_that_cannot_be(topics: list[str], template: str, words: str) -> None:
    """All topics and the template are checked together."""
    with pytest.raises(ConfigError, match=words):
        topic_patterns(topics, template)


@given(FILTERS, FILTERS)
def test_overlap_is_exact(first: str, second: str) -> None:
    """Two filters overlap when some topic matches both; looked for among all short topics."""
    both = any(topic_matches_sub(first, topic) and topic_matches_sub(second, topic) for topic in TOPICS)
    assert filters_overlap(first, second) == both


@given(st.lists(st.sampled_from(["a", "b", "{stream}", "x{stream}"]), min_size=1, max_size=3).map("/".join), FILTERS)
def test_no_stream_slips_through_a_template(template: str, text: str) -> None:
    """For any stream name, also with slashes, topics reported as disjoint are disjoint."""
    if template_overlaps(template, text):
        return
    for stream in ("a", "b", "a/b", "b/a/a"):
        assert not topic_matches_sub(text, template.replace("{stream}", stream))


def test_a_stream_of_several_levels_is_seen() -> None:
    """A stream's name may hold slashes: one level in the template can be two in the topic."""
    assert template_overlaps("out/{stream}/p", "out/+/+/p")
    assert not template_overlaps("out/{stream}/p", "out/+/q")


def found(
    sources: Sequence[MqttSourceConfig] = (),
    sinks: Sequence[MqttSinkConfig] = (),
    brokers: Sequence[BrokerConfig] = (BROKER,),
    control: ControlConfig = NO_CONTROL,
) -> list[str]:
    """The problems of a configuration: of each table, then of the topics of all."""
    config = Config(broker=list(brokers), source=list(sources), sink=list(sinks), control=control)
    tables = [problem for table in (*sources, *sinks) for problem in table.problems()]
    return [problem.text for problem in (*tables, *topic_problems(config))]


def test_plain_configurations_pass() -> None:
    """The defaults beside usual sensors are no loop, with any option enabled."""
    assert not found(
        [mqtt_source_of("sensors/{stream}/data")],
        [MqttSinkConfig(home_assistant=True)],
        control=ControlConfig(mqtt=True),
    )


@pytest.mark.parametrize(
    ("topics", "sink", "key"),
    [
        (["#"], MqttSinkConfig(), "topic"),
        (["+/status"], MqttSinkConfig(), "status_topic"),
        (["stream_gru/+/availability"], MqttSinkConfig(), "availability_topic"),
        (["homeassistant/#"], MqttSinkConfig(home_assistant=True), "discovery_prefix"),
        (["a/{x}/{y}/p"], MqttSinkConfig(topic="a/{stream}/p"), "topic"),
    ],
)
def test_a_loop_is_refused_with_both_keys(topics: list[str], sink: MqttSinkConfig, key: str) -> None:
    """Each topic of a sink is compared with each filter of a source on the same broker."""
    filter_text = topics[0].replace("{x}", "+").replace("{y}", "+")
    expected = f'source[1].topics[1] = "{filter_text}" does not match, as the daemon would read its own outputs, got '
    for name in ("one", "two"):
        apart = replace(sink, broker="one"), replace(mqtt_source_of(*topics), broker=name)
        problems = found([apart[1]], [apart[0]], [BROKER, SAME, OTHER])
        assert any(line.startswith(f"sink[1].{key}: expected a topic that {expected}") for line in problems)
    assert not found([replace(mqtt_source_of(*topics), broker="three")], [replace(sink, broker="one")], [BROKER, OTHER])


def test_commands_are_kept_apart_too() -> None:
    """Outputs must not be commands, and neither commands nor responses samples."""
    commands = ControlConfig(mqtt=True, topic="gru/command")
    for topics, sink, words in (
        (["gru/command"], MqttSinkConfig(), "read commands as samples"),
        (["gru/command/response"], MqttSinkConfig(), "read its own responses"),
        (["x"], MqttSinkConfig(topic="gru/command"), "read its own outputs"),
        (["x"], MqttSinkConfig(topic="gru/{stream}/response"), "whatever the streams are called"),
    ):
        (problem,) = found([mqtt_source_of(*topics)], [sink], control=commands)
        assert words in problem
        assert "control.topic" in problem
    assert not found([mqtt_source_of("gru/command/response")], [MqttSinkConfig()])


@pytest.mark.parametrize(
    ("sinks", "pairs"),
    [
        ([MqttSinkConfig(topic="x/{stream}", status_topic="x/status")], [("status_topic", "topic")]),
        ([MqttSinkConfig(topic="x/{stream}", availability_topic="x/{stream}/up")], [("availability_topic", "topic")]),
        ([MqttSinkConfig(topic="{stream}/availability", status_topic="s")], [("availability_topic", "topic")]),
        ([MqttSinkConfig(topic="s", status_topic="s")], [("status_topic", "topic")]),
        (
            [MqttSinkConfig(topic="ha/{stream}", home_assistant=True, discovery_prefix="ha")],
            [("discovery_prefix", "topic")],
        ),
        ([MqttSinkConfig(topic="x-{stream}", status_topic="x-y/z")], [("status_topic", "topic")]),
        (
            [MqttSinkConfig(), MqttSinkConfig()],
            [("topic", "topic"), ("status_topic", "status_topic"), ("availability_topic", "availability_topic")],
        ),
        ([MqttSinkConfig(), MqttSinkConfig(topic="b/{stream}", status_topic="b", availability_topic="")], []),
        ([MqttSinkConfig(topic="x-{stream}/y", status_topic="x/y", availability_topic="y-{stream}/y")], []),
    ],
)
def test_no_two_outputs_share_a_topic(sinks: list[MqttSinkConfig], pairs: list[tuple[str, str]]) -> None:
    """For any stream name, no output overwrites another one's topic."""
    problems = found([], sinks)
    for (key, other), line in zip(pairs, problems, strict=True):
        assert re.fullmatch(
            rf"sink\[{len(sinks)}\]\.{key}: expected a topic that differs from sink\[1\]\.{other} = .*, "
            r"whatever the streams are called, got .*",
            line,
        )


@given(
    st.lists(st.sampled_from(["a", "b", "{stream}", "x{stream}"]), min_size=1, max_size=3).map("/".join),
    st.lists(st.sampled_from(["a", "b", "{stream}", "x{stream}"]), min_size=1, max_size=3).map("/".join),
)
def test_templates_that_are_apart_never_meet(first: str, second: str) -> None:
    """No two streams get one topic; templates with at most one name overlap only where it is reported."""
    streams = ("a", "b", "a/b", "b/a/a", "xa", "b/xa/b", "a/xb", "xb/xa/xb")
    topics = [{template.replace("{stream}", stream) for stream in streams} for template in (first, second)]
    met = bool(topics[0] & topics[1])
    assert templates_overlap(first, second) == templates_overlap(second, first)
    assert templates_overlap(first, second) or not met


@pytest.mark.parametrize(
    ("first", "second", "meet"),
    [
        ("{stream}", "a/b", True),
        ("x/{stream}", "x/", False),
        ("x/{stream}/y", "x/y", False),
        ("x/{stream}/y", "z/{stream}", False),
        ("x/{stream}/y", "{stream}/z", False),
        ("x/{stream}/y", "{stream}/y", True),
        ("a{stream}", "{stream}b", True),
        ("{stream}-{stream}", "p-p", True),
        ("{stream}-{stream}", "p-q", False),
    ],
)
def test_where_templates_meet(first: str, second: str, meet: bool) -> None:
    """A stream's name is one character or more, of any kind."""
    assert templates_overlap(first, second) == meet


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        (MqttSinkConfig(topic="a/{device}/b"), "topic: expected no braces but {stream}"),
        (MqttSinkConfig(topic="$SYS/{stream}"), "topic: expected a topic that does not begin with \\$"),
        (MqttSinkConfig(topic="all", home_assistant=True), "topic: .*Home Assistant reads each device"),
        (MqttSinkConfig(status_topic="a/{stream}"), "status_topic: .*it is about the daemon"),
        (MqttSinkConfig(availability_topic="a"), "availability_topic: .*a topic with {stream} in it"),
        (MqttSinkConfig(availability_topic="a/+/{stream}"), "availability_topic: .*without \\+ and #"),
    ],
)
def test_topics_of_a_sink_that_cannot_be(sink: MqttSinkConfig, words: str) -> None:
    """Each is reported with its key."""
    assert any(re.match(words, problem.text) for problem in sink.problems())


def test_all_problems_are_reported_at_once() -> None:
    """One run reports every error, also those of sources."""
    problems = found([mqtt_source_of("a/#/b")], [MqttSinkConfig(topic="{x}", status_topic="$a")])
    assert [line.partition(":")[0] for line in problems] == ["topics[1]", "topic", "status_topic"]


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("mqtt://h", ("h", 1883)),
        ("mqtts://h/", ("h", 8883)),
        ("mqtt://[::1]:5", ("::1", 5)),
        ("mqtt://H:65535", ("h", 65535)),
    ],
)
def test_where_a_broker_is(url: str, place: tuple[str, int]) -> None:
    """Host and port, with the usual ports."""
    assert BrokerConfig(url=url).host_and_port() == place


@pytest.mark.parametrize("url", ["mqtt://h:0", "mqtt://h:65536"])
def test_a_port_that_cannot_be(url: str) -> None:
    """The pattern of the configuration lets five digits through."""
    with pytest.raises(ConfigError, match="1 to 65535"):
        BrokerConfig(url=url).host_and_port()


def test_client_ids_differ() -> None:
    """No source or sink can have a name that gives it the client id of another part of the daemon."""
    named = BrokerConfig(url="mqtt://h", client_id="gw7")
    names = ["mqtt", "out", "control", "source", "sink", "sink-a", "source-a", "a"]
    ids = [client_id(named, role, name) for role in ("source", "sink") for name in names]
    ids.append(client_id(named, "control"))
    assert len(set(ids)) == len(ids)
    assert client_id(named, "source", "pumps") == "gw7-source-pumps"
    assert client_id(BROKER, "control").startswith("stream-gru-")


def test_streams_of_a_template() -> None:
    """Filters that match the topics of streams of up to eight levels, and the stream of such a topic."""
    template = "a/{stream}/b"
    filters = stream_filters(template)
    assert filters[:3] == ["a/+/b", "a/+/+/b", "a/+/+/+/b"]
    assert len(filters) == 8
    assert stream_filters("{stream}-{stream}/x")[:2] == ["+/x", "+/+/+/x"]
    for stream in ("p1", "hall/p1", "b/b/b"):
        topic = fill_stream(template, stream)
        assert stream_in(template, topic) == stream
        assert [filters_overlap(topic, one) for one in filters].count(True) == 1
    assert stream_in("{stream}-{stream}/x", "p/1-p/1/x") == "p/1"
    assert [stream_in(template, topic) for topic in ("a/b", "a//b", "c/p/b", "a/p/c")] == ["", "", "", ""]
    assert stream_in("{stream}/{stream}", "p/q") == ""
    assert stream_in("a/b", "a/b") == ""


def test_topics_as_deep_as_a_configuration_allows_are_compared() -> None:
    """A thousand levels do not exhaust the stack."""
    deep = "/" * 1023
    assert filters_overlap(deep, deep)
    assert filters_overlap(deep, "+" + "/+" * 1023)
    assert not filters_overlap(deep, deep + "a")
    assert template_overlaps("{stream}", deep)
