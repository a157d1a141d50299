"""The points at which a daemon kills itself: before and after each step of processing, commit and recovery."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_CHECKPOINTER = "stream_gru.runtime.checkpoint.checkpointer:Checkpointer"
_CACHE = "stream_gru.runtime.checkpoint.eviction:EvictionCache"
_STORE = "stream_gru.runtime.checkpoint.store:Store"
_FILE = "stream_gru.connectors.sinks.file"
_MQTT_SINK = "stream_gru.connectors.sinks.mqtt:MqttSink"
_PUBLISHER = "stream_gru.connectors.mqtt.publisher:Publisher"
_MQTT_SOURCE = "stream_gru.connectors.sources.mqtt:MqttSource"
_PROGRESS = "stream_gru.runtime.pieces:MessageProgress"
_LEDGER = "stream_gru.connectors.mqtt.ack_tracker:AckTracker"


@dataclass(frozen=True, slots=True)
class Point:
    """A function, ``module:name``; one of its first ``calls`` calls is the last.  ``chosen``: which calls count.

    ``mqtt_only``: a replay does not reach it; ``evicts``: reached only when not all streams fit in memory.
    """

    name: str
    function: str
    calls: int = 3
    chosen: Callable[..., bool] | None = None
    mqtt_only: bool = False
    evicts: bool = False


def _to(file_name: str) -> Callable[..., bool]:
    def chosen(sink: Any, *_: object) -> bool:
        return bool(sink._path.name == file_name)

    return chosen


def _has_acks(tracker: Any) -> bool:
    return bool(tracker._acks)


def _someone(_: object, idle: list[str]) -> bool:
    return bool(idle)


ROWS, TABLE, CHANGES = "rows.jsonl", "table.csv.gz", "changes.jsonl"
AUDIT, AUDIT_SUFFIXES = "audit", (".jsonl", ".jsonl.gz", ".csv", ".csv.gz")

PROCESSING = (
    Point("process", "stream_gru.pipeline.pipeline:Pipeline.process", 1),
    Point("inside a message", f"{_PROGRESS}.note", 2, mqtt_only=True),
    Point("write rows", f"{_FILE}:FileSink.write", 5, _to(ROWS)),
    Point("write table", f"{_FILE}:FileSink.write", 5, _to(TABLE)),
    Point("write mqtt", f"{_MQTT_SINK}.write", 5, mqtt_only=True),
    Point("publish", f"{_PUBLISHER}._publish", 60, mqtt_only=True),
    Point("published", f"{_PUBLISHER}.published", 60, mqtt_only=True),
)
COMMIT = (
    Point("flush rows", f"{_FILE}:FileSink.flush", 3, _to(ROWS)),
    Point("flush table", f"{_FILE}:FileSink.flush", 3, _to(TABLE)),
    Point("flush changes", f"{_FILE}:FileSink.flush", 3, _to(CHANGES)),
    Point("flush mqtt", f"{_MQTT_SINK}.flush", mqtt_only=True),
    Point("begin", f"{_STORE}._begin"),
    Point("log", f"{_STORE}._write_log"),
    Point("tables", f"{_STORE}._write_tables"),
    Point("streams", f"{_STORE}._write_streams"),
    Point("component states", f"{_STORE}._write_component_states"),
    Point("values", f"{_STORE}._write_values"),
    Point("outboxes", f"{_STORE}._write_outboxes"),
    Point("end", f"{_STORE}._end"),
    Point("mark clean", f"{_CHECKPOINTER}._mark_clean"),
    Point("committed rows", f"{_FILE}:FileSink.committed", 3, _to(ROWS)),
    Point("committed table", f"{_FILE}:FileSink.committed", 3, _to(TABLE)),
    Point("committed mqtt", f"{_MQTT_SINK}.committed", mqtt_only=True),
    Point("rename", f"{_FILE}:rotate", 1),
    Point("delete old files", f"{_FILE}:delete_oldest", 1),
    Point("source commit", f"{_CHECKPOINTER}._acknowledge"),
    Point("take acknowledgements", f"{_LEDGER}.pending_acks", 3, _has_acks, mqtt_only=True),
    Point("acknowledge", "paho.mqtt.client:Client.ack", 60, mqtt_only=True),
    Point("evict", f"{_CACHE}._evict", 2, _someone, evicts=True),
    Point("load", f"{_CACHE}._load", 5, evicts=True),
)
RECOVERY = (
    Point("lock", "stream_gru.runtime.checkpoint.sqlite_file:StoreLock.acquire", 1),
    Point("open database", "stream_gru.runtime.checkpoint.store:open_database", 1),
    Point("recover streams", f"{_CHECKPOINTER}._recover_streams", 1),
    Point("recover components", f"{_CHECKPOINTER}._recover_components", 1),
    Point("open sink", f"{_CHECKPOINTER}.open_sink", 4),
    Point("cut", f"{_FILE}:recover", 3),
    Point("open source", f"{_CHECKPOINTER}.open_source", 1),
    Point("session", f"{_LEDGER}.connected", 1, mqtt_only=True),
)
POINTS = {point.name: point for point in (*PROCESSING, *COMMIT, *RECOVERY)}
SIDES = ("before", "after")
