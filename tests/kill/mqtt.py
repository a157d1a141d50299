"""Kill a daemon between a device and a real broker, and compare with one that was not killed."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.kill.kills import KillPlan, Tally, few_streams, points_of
from tests.kill.life import Life
from tests.kill.messages import Message, field_messages
from tests.kill.points import ROWS, Point
from tests.kill.results import Results, applied, differences, of_published, read_results
from tests.kill.runs import CLIENT_ID, LOG, Edits, Settings, run_to_the_end, write_config
from tests.support.brokers import Broker, Subscriber
from tests.support.waiting import wait_for

# As deploy/mosquitto, but with a loopback port and its own folder.
_BROKER = ("max_inflight_messages 1000", "set_tcp_nodelay true", "autosave_on_changes false")
_STREAMS = 50
_FEW = 20
_BLOCK = 2000
_EXPECTED_LIFE_S = 1.0


@dataclass
class KillOutcome:
    """The result of a campaign: ``problems`` is empty when nothing was lost or duplicated."""

    tally: Tally
    problems: list[str]
    messages: int
    seconds: float


class KillDevice:
    """Publishes messages with QoS 1 in order on one connection, never beyond the allowed number.

    ``root``: the prefix of its topics.
    """

    def __init__(self, port: int, messages: Sequence[Message], root: str = CLIENT_ID) -> None:
        self._messages, self._root = messages, root
        self._client = Client(CallbackAPIVersion.VERSION2, f"device of {root}", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.max_inflight_messages_set(500)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ended = threading.Event()
        self._pace: Callable[[], float] = lambda: 1.0
        self.failed: Exception | None = None

    def begin(self, pace: Callable[[], float]) -> None:
        """Start to publish; ``pace`` returns the share of the messages that may be sent."""
        self._pace = pace
        self._thread.start()

    def hurry(self) -> None:
        """Publish the rest, and wait until the broker has all."""
        self._pace = lambda: 1.0
        self._thread.join(600)
        assert self.failed is None, self.failed
        assert not self._thread.is_alive(), "the broker takes no more messages"

    def close(self) -> None:
        """Disconnect."""
        self._ended.set()
        self._client.disconnect()
        self._client.loop_stop()
        self._client._reset_sockets()

    def _run(self) -> None:
        sent = 0
        info: MQTTMessageInfo | None = None
        try:
            while sent < len(self._messages) and not self._ended.is_set():
                most = min(len(self._messages), int(self._pace() * len(self._messages)), sent + _BLOCK)
                for message in self._messages[sent:most]:
                    info = self._client.publish(f"{self._root}/{message.stream}/data", message.payload, 1)
                if info is not None and most > sent:
                    info.wait_for_publish(60)
                sent = max(sent, most)
                time.sleep(0.005)
        except Exception as error:
            self.failed = error


def run_mqtt(folder: Path, kills: int, messages: int, seed: int, *, without: str = "") -> KillOutcome:
    """Kill a daemon this often while that many messages arrive, then let one run to the end."""
    begin, rng = time.monotonic(), random.Random(seed)
    sent = list(field_messages(messages, _STREAMS, seed))
    reference = uninterrupted_results(_made(folder / "reference"), sent)
    plan = KillPlan(rng, points_of(mqtt=True), without=without)
    disturbed = _made(folder / "killed")
    with _system(disturbed, "ts") as (broker, subscriber):
        edits = Edits(disturbed, rng)
        problems = _kill_campaign(
            disturbed, broker, sent, kills, plan, lambda point: edits.apply(_chosen_message(rng, point)), "ts"
        )
        config = write_config(disturbed, edits.end(Settings()), url=broker.url)
        last = Life(config, disturbed / LOG, *_options(without))
        problems += _last_life(disturbed, last, lambda: len(subscriber.ids) >= len(reference.files[ROWS]))
        heard = dict(subscriber.ids)
    problems += differences(reference, read_results(disturbed)) + of_published(reference.files[ROWS], heard)
    return KillOutcome(plan.tally, problems, len(sent), time.monotonic() - begin)


def run_counting(
    folder: Path, kills: int, sent: Sequence[Message], seed: int, points: Sequence[Point], *, without: str = ""
) -> KillOutcome:
    """The same where samples have the time of their arrival: compares which samples were applied, in which order."""
    begin, rng = time.monotonic(), random.Random(seed)
    plan = KillPlan(rng, points, share=0.0, without=without)
    disturbed = _made(folder / "counted")
    with _system(disturbed, "") as (broker, _):
        problems = _kill_campaign(disturbed, broker, sent, kills, plan, lambda _: Settings(commit_interval_s=0.05), "")
        last = Life(write_config(disturbed, Settings(), url=broker.url, time=""), disturbed / LOG, *_options(without))
        problems += _last_life(disturbed, last, lambda: True)
    problems += of_applied(sent, read_results(disturbed))
    return KillOutcome(plan.tally, problems, len(sent), time.monotonic() - begin)


def of_applied(sent: Iterable[Message], found: Results) -> list[str]:
    """Return the differences between the applied samples and all that were sent."""
    wanted, got = [(one.stream, one.seq) for one in sent], applied(found.files[ROWS])
    if wanted == got:
        return []
    return [f"applied: {len(set(wanted) - set(got))} samples never, {len(got) - len(set(got))} more than once"]


def uninterrupted_results(folder: Path, sent: Sequence[Message]) -> Results:
    """Return the results of a daemon that runs from the first message to the last."""
    with _system(folder, "ts") as (broker, _):
        life = Life(write_config(folder, Settings(), url=broker.url), folder / LOG)
        device = KillDevice(broker.port, sent)
        try:
            wait_for(lambda: "subscribed to" in life.output(), what="the first daemon", timeout_s=60)
            device.begin(lambda: 1.0)
            device.hurry()
            problems = run_to_the_end(folder, life)
        finally:
            device.close()
            life.close()
    assert not problems, problems
    return read_results(folder)


def _kill_campaign(
    folder: Path,
    broker: Broker,
    sent: Sequence[Message],
    kills: int,
    plan: KillPlan,
    settings: Callable[[Point | None], Settings],
    time_field: str,
) -> list[str]:
    """All runs that are cut short; the device is ahead of them by no more than its share of the messages."""
    device, tally = KillDevice(broker.port, sent), plan.tally
    begun = time.monotonic()

    def pace() -> float:
        return (tally.total + min(1.0, (time.monotonic() - begun) / _EXPECTED_LIFE_S)) / kills

    def configure(point: Point | None) -> Path:
        return write_config(folder, settings(point), url=broker.url, time=time_field)

    try:
        device.begin(pace)
        while tally.total < kills:
            begun = time.monotonic()
            code = plan.end_one(configure, folder / LOG)
            if code is not None:
                return [*tally.problems, f"the daemon ended by itself: {code}: {(folder / LOG).read_text()[-2000:]}"]
        device.hurry()
    finally:
        device.close()
    return tally.problems


def _last_life(folder: Path, life: Life, quiet: Callable[[], bool]) -> list[str]:
    try:
        return run_to_the_end(folder, life, timeout_s=20.0, quiet=quiet)
    finally:
        life.close()


@contextmanager
def _system(folder: Path, time_field: str) -> Iterator[tuple[Broker, Subscriber]]:
    """A broker that has a session for the daemon, and a subscriber to its outputs."""
    with Broker(folder, lines=_BROKER) as broker:
        first = Life(write_config(folder, Settings(), url=broker.url, time=time_field), folder / LOG)
        subscriber = Subscriber(broker.port)
        try:
            wait_for(lambda: "subscribed to" in first.output(), what="the first daemon", timeout_s=60)
            first.stop()
            yield broker, subscriber
        finally:
            subscriber.close()
            subscriber.client._reset_sockets()
            first.close()


def _chosen_message(rng: random.Random, point: Point | None) -> Settings:
    """Return random settings that must not change the results."""
    few = few_streams(rng, point)
    return Settings(
        batch_rows=rng.choice((1, 17, 1024)),
        commit_every=rng.choice((20, 500)),
        commit_interval_s=rng.choice((0.02, 0.1, 0.2)),
        emit=rng.choice(("after_commit", "immediate")),
        max_streams=_FEW if few else 1000,
        max_streams_policy="evict" if few else "reject",
    )


def _options(without: str) -> list[str]:
    return ["--without", without] if without else []


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
