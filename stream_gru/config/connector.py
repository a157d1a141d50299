"""The base of every connector: a table of the configuration, and what the connector says of itself.

A connector is one module and one row of a registry.  The module holds the table, a subclass of `SourceTable` or
`SinkTable` with a ``tag`` (its ``type`` in a file), and the class that `build` returns.  Everything that others need to
know of it stands in the table: keys, rules, delivery warnings, checks.  Only `build` is required.

docs/contributing/add-a-source.md and add-a-sink.md build one each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from msgspec import Meta

from stream_gru.config.field_types import ConnectorName, LiveFormat, PositiveInt, Seconds, Table
from stream_gru.config.problems import Problem
from stream_gru.config.run_schema import BrokerConfig, SourceChannelConfig, SourceInputConfig
from stream_gru.core.checks import Check

if TYPE_CHECKING:  # these load numpy, which checking a file does not need
    from stream_gru.core.protocols import Sink, Source


def ignore() -> None:
    """For a source that is polled anyway."""


class Unique(NamedTuple):
    """A key whose value no two tables of one type may share."""

    key: str
    value: str


class TopicUse(NamedTuple):
    """A topic of a broker: the key that names it, as a path within the table, and the filter or topic itself.

    ``exclusive``: nothing else may be published there.
    """

    path: tuple[str | int, ...]
    topic: str
    exclusive: bool = True


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What `SourceTable.build` gets beside its keys.

    ``name``        of the source: in metrics, logs and positions
    ``format``      the decoder of its records
    ``broker``      of a source that has a ``broker``
    ``state_dir``   folder for what the source itself remembers; empty: none
    ``batch_rows``  records that one poll should return, about
    ``wakeup``      to call, from any thread, when something has arrived
    """

    name: str
    format: str
    broker: BrokerConfig | None = None
    state_dir: str = ""
    batch_rows: int = 1024
    wakeup: Callable[[], None] = ignore


@dataclass(frozen=True, slots=True)
class SinkContext:
    """What `SinkTable.build` gets beside its keys.

    ``name``       of the sink: in metrics, logs and the store
    ``broker``     of a sink that has a ``broker``
    ``immediate``  outputs may leave before they are stored
    """

    name: str
    broker: BrokerConfig | None = None
    immediate: bool = False


class _Connector(Table, frozen=True, kw_only=True, tag_field="type"):
    """What sources and sinks have in common."""

    @property
    def type_name(self) -> str:
        """The ``type`` of the table, which is also the default of its ``name``."""
        return str(self.__struct_config__.tag)

    @property
    def path_keys(self) -> Sequence[str]:
        """Keys that hold a path or a list of paths, which are relative to the configuration file."""
        return ()

    @property
    def secret_keys(self) -> Sequence[str]:
        """Keys that hold the path of a secret, or the name of a systemd credential."""
        return ()

    @property
    def broker_name(self) -> str | None:
        """The name of its [[broker]], empty for the only one; None when it uses none."""
        return None

    @property
    def unique(self) -> Unique | None:
        """What no other table of this type may have, such as a port or a file."""
        return None

    def problems(self) -> Iterator[Problem]:
        """Yield what makes no sense in these keys; paths begin at the table.  Looks at nothing outside."""
        return iter(())

    def verify(self) -> None:
        """Make sure that files which it names exist on this machine.  Connects to nothing.

        Raises ConfigError, DataError.
        """

    def checks(self) -> Iterator[Check]:
        """Yield the checks of `stream-gru doctor`: connects and reads, but changes nothing."""
        return iter(())


class SourceTable(_Connector, frozen=True, kw_only=True):
    """A place that samples come from."""

    name: Annotated[
        ConnectorName,
        Meta(description="Name in metrics and logs; empty: the type, numbered from the second on."),
    ] = ""
    format: Annotated[LiveFormat, Meta(description="Decoder of the records.", examples=["json"])]
    join_channels: Annotated[
        bool,
        Meta(description="Whether channels arrive in separate records and are joined, see [channel_join]."),
    ] = False
    queue_size: Annotated[
        PositiveInt,
        Meta(description="Records that wait to be processed at most; then the sender has to wait."),
    ] = 10_000
    queue_bytes: Annotated[PositiveInt, Meta(description="The same limit in bytes.")] = 16_777_216
    input: Annotated[
        SourceInputConfig,
        Meta(description="How the records of this source are read; a key that is absent is that of [input]."),
    ] = SourceInputConfig()
    channel: Annotated[
        list[SourceChannelConfig],
        Meta(description="Where channels are found that the records of this source name or scale differently."),
    ] = []

    live: ClassVar[bool] = True
    """Whether it is unbounded, unlike a recording."""
    names_streams: ClassVar[bool] = False
    """Whether a message's ``key`` is the stream, unless the records name it: a topic or a port does."""
    max_commit_interval_s: ClassVar[float] = math.inf
    """How often its inputs have to be committed at least."""
    reader: ClassVar[Literal["thread", "loop", "own"]] = "thread"
    """Who polls it.

    ``thread``  a thread, which opens it again after SourceUnavailable; `poll` may block for ``timeout_s``
    ``loop``    the loop, or a thread when there are other sources; SourceUnavailable ends the run
    ``own``     the loop: the source has a thread of its own, and `poll` returns what is there
    """

    @property
    def reconnect_delay_s(self) -> float:
        """Longest pause before it is opened again (``reader = "thread"``)."""
        return 30.0

    @property
    def replay_speed(self) -> float:
        """Of a recording: a multiple of its own speed; 0: as fast as possible."""
        return 0.0

    @property
    def splits_channels(self) -> bool:
        """Whether each message holds one channel, so that channels have to be joined."""
        return False

    def record_format(self, file_format: str) -> str:
        """The decoder of the records.  ``file_format``: what [input] says of recorded files.

        Raises ConfigError, DataError.
        """
        return self.format

    def build(self, context: SourceContext) -> Source:
        """Return the source.  Opens nothing.  Raises ConfigError for keys that cannot be used."""
        raise NotImplementedError

    def delivery_warnings(self, broker: BrokerConfig | None) -> Iterator[str]:
        """Yield where it gives less than exactly once, a sentence each."""
        return iter(())

    def input_warnings(self, stream_field: str) -> Iterator[str]:
        """Yield what of the input itself may surprise; ``stream_field`` names the stream in a record, if any does."""
        return iter(())

    def subscriptions(self) -> Iterator[TopicUse]:
        """Yield the topic filters that it subscribes to on its broker."""
        return iter(())

    def continues(self, before: SourceTable) -> bool:
        """On a reload: whether a position of ``before``, whose place it takes, is one of its own."""
        return type(self) is type(before)

    def reload_problem(self, new: SourceTable) -> str:
        """On a reload: why ``new`` cannot take the place of this running source; empty when it can."""
        return ""


class SinkTable(_Connector, frozen=True, kw_only=True):
    """A place that predictions go to."""

    name: Annotated[
        ConnectorName,
        Meta(
            description="Name in metrics, and under which its outputs are stored; empty: the type, numbered from the "
            "second on."
        ),
    ] = ""
    throttle: Annotated[
        Literal["none", "interval", "change"],
        Meta(
            description='Which outputs are written. "none": all; "interval": the first of each stream in every '
            'interval_s seconds of event time; "change": those whose class, alarm or trust changes.'
        ),
    ] = "none"
    interval_s: Annotated[
        Seconds, Meta(description='Length of an interval with throttle = "interval", in seconds.')
    ] = 60.0

    @property
    def fixed_columns(self) -> bool:
        """Whether what it writes has a header, so that other columns need another place."""
        return False

    def build(self, context: SinkContext) -> Sink:
        """Return the sink.  Opens nothing.  Raises ConfigError for keys that cannot be used."""
        raise NotImplementedError

    def delivery_warnings(self) -> Iterator[str]:
        """Yield where outputs can be lost or repeated, a sentence each."""
        return iter(())

    def publications(self) -> Iterator[TopicUse]:
        """Yield the topics that it publishes to on its broker; ``{stream}`` stands for any stream's name."""
        return iter(())

    def excludes(self, old: SinkTable) -> bool:
        """On a reload: whether it can be opened only after ``old`` is closed."""
        return False
