"""What sources and sinks give to a commit, and what they get back after a restart.

    sink   ── FlushResult ──────▶ store ── SinkCheckpoint ─▶ sink      durable file length, unacknowledged outputs
    source ── ProcessedPackets ─▶ store ── packets ────────▶ source    MQTT packets that are already processed

Plain records: the store knows neither files nor brokers, and sinks and sources do not know the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FileOffset:
    """Durable length of an output file: recovery keeps the first ``offset`` bytes of ``path`` and cuts off the rest.

    ``detail`` is private to the sink: what else it needs to continue the file.
    """

    path: str
    offset: int
    detail: str = ""


@dataclass(slots=True)
class OutboxRow:
    """One output on its way to another machine.  ``number`` counts the outputs of a sink from 1, across restarts.

    ``key`` is the id of the output.  Without a key it is a retained notice, which is never stored and is sent again
    after each reconnect.
    """

    topic: str
    payload: bytes
    key: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What a sink adds to a commit.

    ``file_offset``  durable length of its file
    ``unacked``      outputs since the last commit that are not yet acknowledged
    ``acked``        numbers of outputs of earlier commits that are acknowledged since
    """

    file_offset: FileOffset | None = None
    unacked: Sequence[OutboxRow] = ()
    acked: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SinkCheckpoint:
    """What the store holds for a sink that opens.

    ``file_offset``  durable length of its file
    ``unacked``      outputs to send again, in the order of their numbers
    ``last_number``  the highest output number ever used; new outputs continue after it
    """

    file_offset: FileOffset | None = None
    unacked: Sequence[OutboxRow] = ()
    last_number: int = 0


@dataclass(frozen=True, slots=True)
class ProcessedPackets:
    """MQTT packets that a commit covers: packet identifier -> digest of the message.

    ``new_session``: the broker started a new session, so packet identifiers of earlier commits are no longer valid.
    ``limit``: how many of the newest packets, those of earlier commits included, are worth keeping.
    """

    packets: Mapping[int, bytes] = field(default_factory=dict)
    new_session: bool = False
    limit: int = 65_535


@dataclass(frozen=True, slots=True)
class OutboxState:
    """The unfinished outputs of a sink, for the sink that takes its place.

    ``rows``         without an acknowledgement, in order
    ``acked``        numbers of stored rows that no commit has reported yet
    ``last_number``  the highest number that was given to an output
    ``stored``       no row above this number is stored
    ``durable``      whether there is a store
    """

    rows: Sequence[OutboxRow] = ()
    acked: Sequence[int] = ()
    last_number: int = 0
    stored: int = 0
    durable: bool = False
