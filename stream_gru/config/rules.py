"""Rules between keys: one function for each, one row for each in `RULES`.

A rule gets a configuration of valid form and yields a problem for each thing that makes no sense.  It looks at nothing
outside the file: whether recordings and bundles exist is checked by those who open them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.field_types import MAX_ONE_HOT
from stream_gru.config.problems import KeyPath, Problem, dotted, listed, one_of, quoted, shown
from stream_gru.config.topic_filters import topic_problems
from stream_gru.config.train_schema import Config, SplitConfig

Given = Container[KeyPath]
"""The keys in the file; the others have their defaults."""

# Keys of a layer that mean nothing for a cell.
_WITHOUT = {"gru": (), "lstm": ("reset_after",), "simple_rnn": ("recurrent_activation", "reset_after")}
_INSTANTS = ("validation_from", "test_from", "until")
MIDDLE = 0.5
MAX_PORT = 65535


def check_rules(config: Config, given: Mapping[KeyPath, int], broken: Container[str]) -> Iterator[Problem]:
    """Yield the problems of all rules that read none of the broken tables."""
    for tables, rule in RULES:
        if not any(table in broken for table in tables):
            yield from rule(config, given)


def _channel_names(config: Config, given: Given) -> Iterator[Problem]:
    yield from _once(("channel",), [channel.name for channel in config.channel], "name")


def _columns(config: Config, given: Given) -> Iterator[Problem]:
    """No two things are read from one column."""
    table = config.input
    keys = ("time", "stream", "label", "reset", "episode", "device_seq")
    columns: list[tuple[KeyPath, str]] = [(("input", key), getattr(table, key)) for key in keys]
    for place, channel in enumerate(config.channel):
        columns.append((("channel", place, "column" if channel.column else "name"), channel.column or channel.name))
    names = [channel.name for channel in config.channel]
    for at, (path, column) in enumerate(columns):
        first, _ = next(one for one in columns if one[1] == column)
        if not column or first == path:
            continue
        if path[0] == "channel" and path[-1] == "name" and names.index(column) < at - len(keys):
            continue  # reported by `_channel_names`
        here, other = (first, path) if path not in given and first in given else (path, first)
        yield Problem(here, f"a column that nothing else is read from (see {dotted(other)})", shown(column))


def _channel_ranges(config: Config, given: Given) -> Iterator[Problem]:
    for place, channel in enumerate(config.channel):
        low, high = channel.min, channel.max
        if low is not None and high is not None and not low < high:
            yield Problem(("channel", place, "max"), f"a number above min = {low:.12g}", f"{high:.12g}")


def _categories(config: Config, given: Given) -> Iterator[Problem]:
    """Categories have no range; only they have embeddings, and too many of them need one."""
    embedded = [] if config.model is None else [embedding.channel for embedding in config.model.embedding]
    categorical = [channel.name for channel in config.channel if channel.categories]
    for place, channel in enumerate(config.channel):
        for key in ("min", "max"):
            if channel.categories and getattr(channel, key) is not None:
                yield Problem(("channel", place, key), "no such key beside categories", shown(getattr(channel, key)))
        if channel.categories > MAX_ONE_HOT and config.model is not None and channel.name not in embedded:
            expected = f"at most {MAX_ONE_HOT}, or a [[model.embedding]] for this channel"
            yield Problem(("channel", place, "categories"), expected, shown(channel.categories))
    yield from _once(("model", "embedding"), embedded, "channel")
    for place, name in enumerate(embedded):
        if config.channel and name not in categorical:
            expected = one_of(name, "channels with categories", categorical)
            yield Problem(("model", "embedding", place, "channel"), expected, shown(name))


def _recordings(config: Config, given: Given) -> Iterator[Problem]:
    if config.data is not None and not config.data.files:
        yield Problem(("data", "files"), "at least one file", "none")


def _connectors(config: Config, given: Given) -> Iterator[Problem]:
    """Names are used once, and what only one of a type may have; each source and sink has rules of its own."""
    tables: dict[str, Sequence[SourceTable | SinkTable]] = {"source": config.source, "sink": config.sink}
    for key, connectors in tables.items():
        yield from _once((key,), [one.name for one in connectors], "name")
        for place, one in enumerate(connectors):
            yield from _unique((key, place), one, connectors[:place])
            for problem in one.problems():
                yield problem._replace(path=(key, place, *problem.path))


def _unique(
    path: KeyPath, table: SourceTable | SinkTable, before: Sequence[SourceTable | SinkTable]
) -> Iterator[Problem]:
    unique = table.unique
    for place, other in enumerate(before):
        if unique is not None and type(other) is type(table) and other.unique == unique:
            expected = f"a {unique.key} that no other {path[0]} has (see {dotted((path[0], place, unique.key))})"
            yield Problem((*path, unique.key), expected, shown(unique.value))
            return


def _sources(config: Config, given: Given) -> Iterator[Problem]:
    """A recording is replayed alone at its own speed."""
    for place, source in enumerate(config.source):
        yield from _once(("source", place, "channel"), [channel.name for channel in source.channel], "name")
        if source.replay_speed and len(config.source) > 1:
            yield Problem(("source", place, "speed"), "0, as there are other sources", f"{source.replay_speed:g}")


def _brokers(config: Config, given: Given) -> Iterator[Problem]:
    """Each table that uses MQTT names a broker that exists."""
    names = [broker.name for broker in config.broker]
    yield from _once(("broker",), names, "name")
    wanted: list[tuple[KeyPath, str | None]] = [
        *((("source", i), one.broker_name) for i, one in enumerate(config.source)),
        *((("sink", i), one.broker_name) for i, one in enumerate(config.sink)),
    ]
    if config.control.mqtt:
        wanted.append((("control",), config.control.broker))
    for path, name in wanted:
        if name is None:
            continue
        if not names:
            yield Problem(path, "a [[broker]] table with the broker's url", "none")
        elif name and name not in names:
            yield Problem((*path, "broker"), one_of(name, "brokers", names), quoted(name))
        elif not name and len(names) > 1:
            yield Problem((*path, "broker"), f"one of the brokers {listed(names)}", "none")
    for place, broker in enumerate(config.broker):
        if bool(broker.cert_file) != bool(broker.key_file):
            absent = "key_file" if broker.cert_file else "cert_file"
            yield Problem(("broker", place, absent), "a file, as a client certificate has two", "none")
        if broker.url.startswith("mqtt://"):
            for key in ("ca_file", "cert_file", "key_file"):
                if getattr(broker, key):
                    path = ("broker", place, key)
                    yield Problem(
                        path, f"no such key for {quoted(broker.url)}; TLS is mqtts://", shown(getattr(broker, key))
                    )


def _topics(config: Config, given: Given) -> Iterator[Problem]:
    yield from topic_problems(config)


def _shares(config: Config, given: Given) -> Iterator[Problem]:
    split = config.split
    if split.by == "time" and not _has_instants(split) and split.validation + split.test >= 1:
        path = _given_one(("split", "test"), ("split", "validation"), given)
        yield Problem(path, "validation + test below 1", f"{split.validation + split.test:g}")


def _instants(config: Config, given: Given) -> Iterator[Problem]:
    split = config.split
    if split.by != "time":
        return
    if bool(split.validation_from) != bool(split.test_from):
        absent, present = (
            ("test_from", "validation_from") if split.validation_from else ("validation_from", "test_from")
        )
        yield Problem(("split", absent), f"a date and time, as {present} is given", "none")
    times: list[tuple[str, datetime]] = []
    for key in _INSTANTS:
        text = getattr(split, key)
        time = _instant(text)
        if time is not None:
            times.append((key, time))
        elif text:
            yield Problem(("split", key), 'a date and time such as "2026-03-01T06:00:00Z"', shown(text))
    for (before, start), (key, end) in pairwise(times):
        if not start < end:
            expected = f"a time after {before} = {quoted(getattr(split, before))}"
            yield Problem(("split", key), expected, shown(getattr(split, key)))


def _patterns(config: Config, given: Given) -> Iterator[Problem]:
    for key in ("validation_streams", "test_streams"):
        if config.split.by == "stream" and not getattr(config.split, key):
            yield Problem(("split", key), 'at least one name or pattern of streams, as by = "stream"', "none")


def _heads(config: Config, given: Given) -> Iterator[Problem]:
    model = config.model
    if model is not None and model.forecast is None and model.classes is None:
        yield Problem(("model",), "a table [model.forecast], [model.classes] or both", "none")


def _layers(config: Config, given: Given) -> Iterator[Problem]:
    if config.model is None:
        return
    if not config.model.layer:
        yield Problem(("model", "layer"), "at least one layer", "none")
    for place, layer in enumerate(config.model.layer):
        for key in _WITHOUT[layer.cell]:
            path = ("model", "layer", place, key)
            if path in given:
                yield Problem(path, f"no such key for cell = {quoted(layer.cell)}", shown(getattr(layer, key)))


def _repeats(config: Config, given: Given) -> Iterator[Problem]:
    model = config.model
    if model is None:
        return
    yield from _once(("model", "calendar"), model.calendar)
    if model.forecast is not None:
        yield from _once(("model", "forecast", "targets"), model.forecast.targets)
    if model.classes is not None:
        yield from _once(("model", "classes", "labels"), model.classes.labels)


def _targets(config: Config, given: Given) -> Iterator[Problem]:
    if not config.channel or config.model is None or config.model.forecast is None:
        return
    names = [channel.name for channel in config.channel if not channel.categories]
    if not names:
        yield Problem(("model", "forecast"), "a channel that is a quantity, without categories", "none")
    for place, target in enumerate(config.model.forecast.targets):
        if target not in names:
            yield Problem(("model", "forecast", "targets", place), one_of(target, "channels", names), shown(target))


def _quantiles(config: Config, given: Given) -> Iterator[Problem]:
    if config.model is None or config.model.forecast is None or not config.model.forecast.quantiles:
        return
    path, levels = ("model", "forecast", "quantiles"), config.model.forecast.quantiles
    for place, (low, high) in enumerate(pairwise(levels), start=1):
        if not low < high:
            yield Problem((*path, place), f"a number above the one before it, {shown(low)}", shown(high))
    if not min(levels) < MIDDLE < max(levels):
        yield Problem(path, "numbers below and above 0.5", ", ".join(map(shown, levels[:9])))


def _labels(config: Config, given: Given) -> Iterator[Problem]:
    if config.model is None or config.model.classes is None:
        return
    if not config.input.label:
        yield Problem(("model", "classes"), "input.label to name the column that holds the class", "none")
    labels = config.model.classes.labels
    if config.model.classes.activation == "logistic" and len(labels) not in (0, 2):
        yield Problem(("model", "classes", "labels"), 'two labels, as activation = "logistic"', f"{len(labels)}")


def _windows(config: Config, given: Given) -> Iterator[Problem]:
    training = config.training
    if training.regime != "windowed":
        return
    if training.stride > training.window:
        path = _given_one(("training", "stride"), ("training", "window"), given)
        yield Problem(path, f"stride at most window = {training.window}", f"stride = {training.stride}")
    if training.window_loss == "every" and training.warm_up >= training.window:
        path = _given_one(("training", "warm_up"), ("training", "window"), given)
        yield Problem(path, f"warm_up below window = {training.window}", f"warm_up = {training.warm_up}")


def _channel_shift(config: Config, given: Given) -> Iterator[Problem]:
    """Augmentation may shift only channels of the same kind; a forecast needs its channels."""
    if not config.training.augment_channel_shift:
        return
    path, got = ("training", "augment_channel_shift"), f"{config.training.augment_channel_shift}"
    if config.model is not None and config.model.forecast is not None:
        yield Problem(path, "0 beside [model.forecast], whose targets are certain channels", got)
    if any(channel.categories for channel in config.channel):
        yield Problem(path, "0, as a channel has categories", got)


def _eviction(config: Config, given: Given) -> Iterator[Problem]:
    """Eviction needs a folder, and room for more streams than memory has."""
    run = config.run
    if run is None or run.max_streams_policy != "evict":
        return
    if not run.state_dir:
        yield Problem(("run", "state_dir"), 'a folder, as max_streams_policy = "evict"', "none")
    if run.max_stored_streams < run.max_streams:
        path = _given_one(("run", "max_stored_streams"), ("run", "max_streams"), given)
        yield Problem(path, f"max_stored_streams at least max_streams = {run.max_streams}", f"{run.max_stored_streams}")


def _port(config: Config, given: Given) -> Iterator[Problem]:
    port = int(config.metrics.listen.rpartition(":")[2])
    if port > MAX_PORT:
        yield Problem(("metrics", "listen"), f"a port of 0 to {MAX_PORT}", shown(port))


def _once(path: KeyPath, names: Sequence[str], *key: str) -> Iterator[Problem]:
    """Yield a problem for each name that an earlier item has; empty names are no names."""
    for place, name in enumerate(names):
        first = names.index(name)
        if name and first < place:
            expected = f"a name that no other has (see {dotted((*path, first, *key))})"
            yield Problem((*path, place, *key), expected, shown(name))


def _given_one(path: KeyPath, other: KeyPath, given: Given) -> KeyPath:
    """Return the path whose key is in the file, so that the message points at something to change."""
    return path if path in given or other not in given else other


def _has_instants(split: SplitConfig) -> bool:
    return bool(split.validation_from or split.test_from)


def _instant(text: str) -> datetime | None:
    """Return the time of an ISO 8601 text, UTC without an offset; None for any other text."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


Rule = Callable[[Config, Given], Iterator[Problem]]

RULES: tuple[tuple[tuple[str, ...], Rule], ...] = (
    (("channel",), _channel_names),
    (("channel",), _channel_ranges),
    (("channel", "model"), _categories),
    (("input", "channel"), _columns),
    (("data",), _recordings),
    (("source", "sink"), _connectors),
    (("source",), _sources),
    (("broker", "source", "sink", "control"), _brokers),
    (("broker", "source", "sink", "control"), _topics),
    (("split",), _shares),
    (("split",), _instants),
    (("split",), _patterns),
    (("model",), _heads),
    (("model",), _layers),
    (("model",), _repeats),
    (("channel", "model"), _targets),
    (("model",), _quantiles),
    (("input", "model"), _labels),
    (("training",), _windows),
    (("training", "model", "channel"), _channel_shift),
    (("run",), _eviction),
    (("metrics",), _port),
)
"""Each rule with the tables it reads."""
