"""A real mosquitto on a loopback port, a client that publishes, and a subscriber that survives its restarts."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from paho.mqtt.client import Client, MQTTMessage, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.support.network import free_port
from tests.support.requirements import MOSQUITTO
from tests.support.waiting import wait_for


class Broker:
    """Mosquitto in ``folder``; after a restart it has the same port and, after a clean stop, the same sessions.

    ``users`` name -> password, all others are refused; ``acl`` lines of an access list; ``tls`` (authority,
    certificate, key), clients must then present a certificate with ``client_certificates``; ``lines`` of configuration
    as they are.
    """

    def __init__(
        self,
        folder: Path,
        *,
        users: Mapping[str, str] | None = None,
        acl: Sequence[str] = (),
        tls: tuple[Path, Path, Path] | None = None,
        client_certificates: bool = False,
        max_packet_bytes: int = 0,
        lines: Sequence[str] = (),
    ) -> None:
        self.port = free_port()
        self.url = f"{'mqtts' if tls else 'mqtt'}://127.0.0.1:{self.port}"
        self._folder = folder
        self._tls = tls
        self._process: subprocess.Popen[bytes] | None = None
        self._store = folder / "mosquitto.db"
        config = [
            f"listener {self.port} 127.0.0.1",
            f"allow_anonymous {'false' if users else 'true'}",
            "user root",
            "persistence true",
            f"persistence_location {folder}/",
            "autosave_interval 1",
            # Not 0, which should mean no limit: 2.0.11 then disconnects at every refused publish.
            "max_queued_messages 100000",
            *lines,
        ]
        if max_packet_bytes:
            config.append(f"max_packet_size {max_packet_bytes}")
        if tls:
            authority, certificate, key = tls
            config += [f"cafile {authority}", f"certfile {certificate}", f"keyfile {key}"]
            config.append(f"require_certificate {'true' if client_certificates else 'false'}")
        if users:
            config.append(f"password_file {self._write_passwords(users)}")
        if acl:
            (folder / "acl").write_text("\n".join(acl) + "\n")
            config.append(f"acl_file {folder / 'acl'}")
        self._config = folder / "mosquitto.conf"
        self._config.write_text("\n".join(config) + "\n")

    def _write_passwords(self, users: Mapping[str, str]) -> Path:
        path = self._folder / "passwords"
        path.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        path.chmod(0o600)
        subprocess.run([shutil.which("mosquitto_passwd") or "mosquitto_passwd", "-U", path], check=True)
        return path

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.thaw()
        self.kill()

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self._folder / "mosquitto.log").open("ab") as output:
            self._process = subprocess.Popen([MOSQUITTO, "-c", self._config], stdout=output, stderr=output)
        wait_for(self._answers, what="mosquitto")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "mosquitto.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """Stop it cleanly: it saves its sessions."""
        self._signal(signal.SIGTERM)
        self._reap()

    def kill(self) -> None:
        """Kill it."""
        self._signal(signal.SIGKILL)
        self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(10)
            self._process = None

    def save(self) -> None:
        """Make it save its state, as it does now and then."""
        before = self._written()
        self._signal(signal.SIGUSR1)
        wait_for(lambda: self._written() != before, what="mosquitto.db")

    def _written(self) -> tuple[int, int]:
        if not self._store.exists():
            return 0, 0
        found = self._store.stat()
        return found.st_ino, found.st_mtime_ns

    def freeze(self) -> None:
        """Freeze it: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue after `freeze`."""
        self._signal(signal.SIGCONT)

    def forget(self) -> None:
        """Delete its saved state; only while it is stopped."""
        self._store.unlink(missing_ok=True)

    def client(self, name: str = "", user: str = "", password: str = "") -> Peer:
        """Another client, connected."""
        return Peer(self.port, name, user, password)


class Peer:
    """A client of the test: publishes, waits for the acknowledgement, and stores what it receives."""

    def __init__(self, port: int, name: str, user: str, password: str) -> None:
        self._client = Client(CallbackAPIVersion.VERSION2, name, protocol=MQTTProtocolVersion.MQTTv5)
        if user:
            self._client.username_pw_set(user, password)
        self.heard: list[MQTTMessage] = []
        self._subscribed: list[int] = []
        self._client.on_message = lambda _c, _u, message: self.heard.append(message)
        self._client.on_subscribe = lambda _c, _u, mid, _codes, _p: self._subscribed.append(mid)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect_async("127.0.0.1", port, keepalive=60, clean_start=True)
        self._client.loop_start()
        wait_for(self._client.is_connected, what="the test's own client")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        # Paho 2.2 keeps its pair of sockets until it is collected, which pytest would report.
        self._client._reset_sockets()

    def publish(self, topic: str, *payloads: bytes | str, qos: int = 1, retain: bool = False) -> None:
        """Publish one after the other and wait until the broker has them."""
        self._await([self._client.publish(topic, payload, qos, retain) for payload in payloads])

    def publish_all(self, messages: Iterable[tuple[str, bytes | str]], message_expiry_s: int = 0) -> None:
        """The same to several topics with QoS 1; the broker keeps each for ``message_expiry_s`` (0: no expiry)."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if message_expiry_s:
            properties.MessageExpiryInterval = message_expiry_s
        self._await([self._client.publish(topic, payload, 1, properties=properties) for topic, payload in messages])

    def _await(self, sent: Sequence[MQTTMessageInfo]) -> None:
        for info in sent:
            info.wait_for_publish(20)
            assert info.is_published()

    def subscribe(self, text: str) -> None:
        """Subscribe to a filter; retained messages arrive first."""
        _, mid = self._client.subscribe(text, options=SubscribeOptions(qos=1, retainAsPublished=True))
        wait_for(lambda: mid in self._subscribed, what=f"subscription to {text}")

    def payloads(self, topic: str = "") -> list[bytes]:
        """The received messages, optionally of one topic only."""
        return [bytes(message.payload) for message in list(self.heard) if topic in ("", message.topic)]


class Subscriber:
    """Stores every prediction with the number of its deliveries, over all connections."""

    def __init__(self, port: int) -> None:
        self.rows: Counter[bytes] = Counter()
        self.ids: dict[str, set[bytes]] = {}
        self._lock = threading.Lock()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id="subscriber", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_message = self._keep
        granted = threading.Event()
        self.client.on_subscribe = lambda *_: granted.set()
        self.client.on_connect = lambda client, *_: client.subscribe("stream_gru/+/prediction", qos=1)
        self.client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self.client.loop_start()
        assert granted.wait(20), "the subscriber was granted nothing"

    def _keep(self, _: Client, __: object, message: MQTTMessage) -> None:
        (name,) = [value for key, value in message.properties.UserProperty if key == "id"]  # type: ignore[union-attr]
        payload = bytes(message.payload)
        with self._lock:
            self.rows[payload] += 1
            self.ids.setdefault(name, set()).add(payload)

    def close(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()
