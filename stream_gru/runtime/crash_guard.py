"""The crash guard: a message that ends the process again and again is set aside as a dead letter (reason ``poison``).

A message is acknowledged after a commit, so a broker delivers the one that killed the daemon again after each restart.
While messages are processed, the file ``in_progress`` in the state folder holds their digests.  At the next start they
are suspects: each is processed alone, and one that was in progress too often is rejected without being decoded.

Decision: an operator or a power cut ends a process as well, so a death by itself counts little: a message is set aside
after `_LIMIT` of them.  It counts more, so that the decoder meets the message twice at most, with evidence that the
message is at fault: an unexpected exception, a fatal signal (a native crash, the watchdog of systemd), or more than
`_SLOW_S` seconds in one piece, as before the kernel ends a process that needs too much memory.

The file is not synced: it has to outlive the process, not the machine.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated

import msgspec
from msgspec import Meta, Struct

from stream_gru.core.errors import StreamGruError
from stream_gru.core.types import DropReason, RawMessage
from stream_gru.runtime.pieces import digest_of

log = logging.getLogger(__name__)

FILE_NAME = "in_progress"
_LIMIT = 6
_WITH_EVIDENCE = 3
_SLOW_S = 1.0
_MAX_BYTES = 1_048_576
_LENGTH_BYTES = 4

_Digest = Annotated[bytes, Meta(min_length=16, max_length=16)]


class _Record(Struct, array_like=True, forbid_unknown_fields=True):
    """``current``: messages in progress; ``suspects``: weight of the deaths of earlier ones."""

    current: list[_Digest] = []
    suspects: dict[_Digest, Annotated[int, Meta(ge=0, le=1000)]] = {}
    evidence: bool = False


class CrashGuard:
    """Guards one daemon.  ``folder`` None: nothing is kept, so nothing is ever set aside."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = None if folder is None else folder / FILE_NAME
        self._file: IO[bytes] | None = None
        self._signals: IO[bytes] | None = None
        self._suspects: dict[bytes, int] = {}
        self._record = _Record()
        self._piece = 0
        self._closed = threading.Event()

    def open(self, *, clean: bool) -> None:
        """Read what the last process left, ``clean`` if it ended on purpose.  Errors of the disk are logged."""
        if self._path is None:
            return
        signals = self._path.with_name(f"{FILE_NAME}.signal")
        try:
            if not clean:
                self._suspects = _suspects(_read(self._path), signals.exists() and signals.stat().st_size > 0)
            self._file = _opened(self._path)
            self._signals = _opened(signals)
            self._signals.truncate(0)
        except OSError as error:
            log.warning("%s: cannot be used: %s; messages that end the process are not detected", self._path, error)
            return
        if not faulthandler.is_enabled():
            faulthandler.enable(self._signals, all_threads=False)
        self._write(_Record(suspects=self._suspects))
        threading.Thread(target=self._watch, name="crash-guard", daemon=True).start()

    def close(self) -> None:
        """Close the files; may be called twice."""
        self._closed.set()
        if self._signals is not None:
            faulthandler.disable()
        for file in (self._file, self._signals):
            if file is not None:
                file.close()
        self._file = self._signals = None

    def is_suspect(self, message: RawMessage) -> bool:
        """Whether a message has to be processed alone."""
        return bool(self._suspects) and digest_of(message) in self._suspects

    def screened(self, messages: Sequence[RawMessage]) -> Sequence[RawMessage]:
        """The messages of one group; one that ended the process too often is marked as a fault."""
        if len(messages) != 1 or self._suspects.get(digest_of(messages[0]), 0) < _LIMIT:
            return messages
        message = messages[0]
        log.error(
            "source %s: a message of %s, %d bytes, was being processed each time when the process died; it is rejected",
            message.source, message.key or "no key", len(message.payload),
        )  # fmt: skip
        return [replace(message, fault=DropReason.POISON)]

    @contextmanager
    def processing(self, messages: Sequence[RawMessage]) -> Iterator[None]:
        """Note that these messages are in progress."""
        if self._file is None:
            yield
            return
        digests = [digest_of(message) for message in messages]
        self._piece += 1
        self._write(_Record(digests, self._suspects))
        try:
            yield
        except StreamGruError:
            raise
        except Exception:
            self._write(_Record(digests, self._suspects, evidence=True))
            raise
        self._piece += 1
        for digest in digests if self._suspects else ():
            self._suspects.pop(digest, None)
        self._write(_Record(suspects=self._suspects))

    def _write(self, record: _Record) -> None:
        self._record = record
        data = msgspec.msgpack.encode(record)
        if self._file is not None:
            try:
                os.pwrite(self._file.fileno(), len(data).to_bytes(_LENGTH_BYTES, "little") + data, 0)
            except OSError as error:
                log.warning("%s: cannot be written: %s", self._path, error)
                self.close()

    def _watch(self) -> None:
        """The thread: note when a piece takes long."""
        last = -1
        while not self._closed.wait(_SLOW_S):
            record, piece = self._record, self._piece
            if record.current and piece == last and not record.evidence:
                self._write(msgspec.structs.replace(record, evidence=True))
            last = piece


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0)


def _read(path: Path) -> _Record:
    """The record in a file; an empty one where the file is missing or damaged.  Raises OSError."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            return msgspec.msgpack.decode(file.read(min(size, _MAX_BYTES)), type=_Record)
    except (FileNotFoundError, msgspec.MsgspecError):
        return _Record()


def _suspects(record: _Record, signalled: bool) -> dict[bytes, int]:
    """The suspects after a death in this record's state."""
    found = dict(record.suspects)
    weight = _WITH_EVIDENCE if record.evidence or signalled else 1
    for digest in record.current:
        # Evidence against several messages is no evidence against any of them.
        found[digest] = found.get(digest, 0) + (weight if len(record.current) == 1 else 1)
    return found
