"""What a commit makes durable for sources and sinks, and what it gives back to them after a restart.

    sink   ── Written ──▶ store ── Kept ─────▶ sink        how long its file is; outputs that nobody has confirmed
    source ── Receipts ─▶ store ── packets ──▶ source      packets of a broker that were processed

Plain records: the store knows nothing of files and brokers, and these know nothing of the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FileOffset:
    """How far a file is durable: what lies before ``offset`` bytes of ``path`` stays, what lies behind is cut off.

    ``detail`` is the sink's own affair: what it needs besides to go on there, in a form of its choice.
    """

    path: str
    offset: int
    detail: str = ""


@dataclass(slots=True)
class OutboxRow:
    """One output on its way to another machine.  ``number`` counts the outputs of a sink from 1 on, over restarts.

    ``key`` is the id of the output; what has none is a notice: retained, never stored, said again after a reconnect.
    """

    topic: str
    payload: bytes
    key: str = ""
    number: int = 0


@dataclass(frozen=True, slots=True)
class FlushResult:
    """What a sink has to say to a commit.

    ``file_offset``      how far its file is durable now
    ``unacked``      outputs that came since the last commit and have no answer yet
    ``acked``  numbers of outputs of earlier commits that need not be sent again
    """

    file_offset: FileOffset | None = None
    unacked: Sequence[OutboxRow] = ()
    acked: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class SinkCheckpoint:
    """What the store has for a sink that opens: of its file, and outputs to send, in the order of their numbers.

    ``last_number``: the highest number that was ever given to an output of this sink; numbers go on behind it.
    """

    file_offset: FileOffset | None = None
    unacked: Sequence[OutboxRow] = ()
    last_number: int = 0


@dataclass(frozen=True, slots=True)
class ProcessedPackets:
    """Packets of a broker that a commit covers: packet identifier -> digest of what it said.

    ``new_session``: the session of all earlier packets is gone, what is known of them means nothing any more.
    """

    packets: Mapping[int, bytes] = field(default_factory=dict)
    new_session: bool = False
