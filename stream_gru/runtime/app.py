"""The application: a resolved configuration that runs, with its HTTP server and its commands.

A reload (SIGHUP) resolves the configuration again.  Where that fails, the old one keeps running.  Otherwise the runtime
of the daemon is replaced between two batches (`runtime.reload`); parts whose settings are the same stay open.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from stream_gru import __version__
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.auth import stored_client_id
from stream_gru.core.errors import StoreError, StreamGruError
from stream_gru.core.protocols import Engine
from stream_gru.model.engines.registry import TimedEngine, load_engine
from stream_gru.runtime import wiring
from stream_gru.runtime.control.commands import Commands
from stream_gru.runtime.control.executor import CommandExecutor, PauseFilter
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.health import HealthReporter, SystemdNotifier
from stream_gru.runtime.http.api import Api, DaemonStatus, StreamStatus
from stream_gru.runtime.http.broadcast import OutputBroadcaster
from stream_gru.runtime.http.server import WebServer
from stream_gru.runtime.metrics import Metrics, build_registry
from stream_gru.runtime.reload import Reload
from stream_gru.runtime.resolved_config import ResolvedConfig, resolve_file
from stream_gru.runtime.stream_checks import IdleStreams, SampleRateCheck

log = logging.getLogger(__name__)

_STUCK_S = 60.0


class _Prepared(NamedTuple):
    """A configuration that can be applied, with what was opened for it beside the one that runs."""

    config: ResolvedConfig
    reload: Reload
    server: WebServer | None


class Application:
    """A running configuration.  Raises StoreError when the client id in the state folder cannot be read or made."""

    def __init__(self, config: ResolvedConfig) -> None:
        config = with_stored_client_id(config)
        self.config = config
        wakeup = threading.Event()
        self._pause_filter, self._commands, self._broadcaster = PauseFilter(), Commands(), OutputBroadcaster()
        self._surroundings = wiring.Surroundings(wakeup.set, self._pause_filter)
        engine = load_engine(config.run.engine, config.bundle)
        self.metrics = Metrics(build_registry(), config.bundle.manifest, engine.name, __version__)
        self.metrics.observe_level(config.run.interval_level)
        runtime = wiring.build_runtime(
            config, engine=self._timed(engine), surroundings=self._surroundings, store=wiring.build_store(config)
        )
        self._idle = (
            IdleStreams(wiring.stream_idle_timeout_s(config), max_streams=wiring.watched_streams(config))
            if config.live
            else None
        )
        self._health = HealthReporter(
            metrics=self.metrics,
            idle=self._idle,
            rates=SampleRateCheck(config.bundle.manifest.period_s),
            pause_filter=self._pause_filter,
            notifier=SystemdNotifier(),
        )
        commands = CommandExecutor(
            self._commands,
            runtime.checkpointer,
            pause_filter=self._pause_filter,
            idle=self._idle,
            metrics=self.metrics,
        )
        self.daemon = Daemon(
            runtime, commands=commands, health=self._health, broadcast=self._broadcaster.write, wakeup=wakeup
        )
        self._server: WebServer | None = None
        self._control = ExitStack()
        self._started_s = time.monotonic()
        self._add_series()

    @property
    def address(self) -> str:
        """The URL of the HTTP server; empty without one."""
        return "" if self._server is None else self._server.address

    def open(self) -> None:
        """Open the HTTP server and the command topic.

        Raises ConfigError when the address is taken, StoreLocked when another process has the state.
        """
        store = self.daemon.runtime.checkpointer.store
        if store is not None:
            store.acquire_lock()  # a second daemon learns who holds the state, not that a port is taken
        self._server = self._open_server(self.config)
        self._open_control(self.config)
        self.metrics.observe_reload(time.time(), ok=True)

    def close(self) -> None:
        """Close what `open` opened."""
        self._broadcaster.close()
        self._control.close()
        if self._server is not None:
            self._server.close()
            self._server = None

    def _timed(self, engine: Engine) -> TimedEngine:
        return TimedEngine(engine, self.metrics.observe_inference)

    def _add_series(self) -> None:
        """Begin the metric series of all sources and sinks."""
        for source in self.config.sources:
            self.metrics.add_source(source.name, connected=False)
        for sink in self.config.sinks:
            self.metrics.add_sink(sink.name, connected=False)

    def _open_server(self, config: ResolvedConfig) -> WebServer | None:
        if not config.config.metrics.enabled:
            return None
        api = Api(
            status=self.status,
            streams=self.streams,
            broadcaster=self._broadcaster,
            commands=self._commands,
            token=config.token,
            rejected=self._rejected,
        )
        server = WebServer(
            config.config.metrics.listen, self.metrics.registry, healthy=self.healthy, ready=self.ready, api=api
        )
        server.open()
        return server

    def _open_control(self, config: ResolvedConfig) -> None:
        if config.control_broker is not None:
            from stream_gru.runtime.control.mqtt import ControlMqtt

            control = ControlMqtt(config.config.control, config.control_broker, self._commands, self._rejected)
            control.open()
            self._control.callback(control.close)

    def _rejected(self, action: str, _: str) -> None:
        """Count a command that never reached the loop."""
        self.metrics.observe_command(action, ok=False)

    # ---- asked by the HTTP server, from its own thread ------------------------------------------------------------

    def healthy(self) -> tuple[bool, str]:
        """Whether the loop makes progress, and a line of text about it."""
        age_s = time.monotonic() - self.daemon.last_turn_s
        well = not self.daemon.ready or age_s < _STUCK_S
        return well, "healthy" if well else f"no progress for {age_s:.0f} s"

    def ready(self) -> tuple[bool, str]:
        """Whether samples are processed, and a line of text about it."""
        return self.daemon.ready, "ready" if self.daemon.ready else "not ready"

    def status(self) -> DaemonStatus:
        """What runs, and the state of sources and sinks."""
        daemon, summary = self.daemon, self.daemon.summary
        return DaemonStatus(
            version=__version__,
            model_id=daemon.pipeline.spec.model_id,
            engine=daemon.pipeline.engine.name,
            ready=daemon.ready,
            uptime_s=time.monotonic() - self._started_s,
            streams=len(daemon.pipeline.streams),
            sources={one.name: one.source.health() for one in daemon.runtime.inputs},
            sinks={name: sink.health() for name, sink in daemon.runtime.sinks.items()},
            counts={
                "received": summary.received,
                "applied": summary.applied,
                **{f"dropped_{reason}": n for reason, n in summary.dropped.items() if n},
            },
            paused=self._pause_filter.names,
            paused_all=self._pause_filter.all_paused,
            resumed=self._pause_filter.resumed,
        )

    def streams(self, limit: int) -> list[StreamStatus]:
        """One entry for each stream, at most ``limit``."""
        return [
            StreamStatus(name, time_text, steps, self._stream_status(name), *self._health.drops.of(name))
            for name, time_text, steps in self.daemon.pipeline.stream_progress(limit)
        ]

    def _stream_status(self, stream: str) -> str:
        if stream in self._pause_filter:
            return "paused"
        if self._health.drops.all_dropped(stream):
            return "dropping"
        return "idle" if self._health.is_idle(stream) else "online"

    # ---- reload ---------------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Resolve the configuration again and apply it; an invalid one is rejected.  Called by the loop.

        Raises what a commit raises, and errors after the old runtime is closed: these end the daemon.
        """
        self._health.notifier.reloading()
        self.daemon.commit()
        try:
            prepared = self._prepare(with_stored_client_id(resolve_file(self.config.path)))
        except StoreError:
            raise
        except StreamGruError as error:
            log.error("configuration rejected, the previous one keeps running: %s", error)
            self.metrics.observe_reload(time.time(), ok=False)
        else:
            log.info("configuration applied: %s", self._apply(prepared))
            self.metrics.observe_reload(time.time(), ok=True)
        self._health.notifier.ready()

    def _prepare(self, new: ResolvedConfig) -> _Prepared:
        """Do all of a reload that can fail, while the old runtime continues.

        Raises ConfigError, BundleError, DataError, SinkUnavailable, StateError; StoreError.
        """
        engine = load_engine(new.run.engine, new.bundle)
        reload = Reload(self.daemon.runtime, self.config, new, self._timed(engine), self._surroundings)
        with ExitStack() as undo:
            server = self._new_server(new)
            if server is not None:
                undo.callback(server.close)
            reload.open_sinks(undo)
            undo.pop_all()
        return _Prepared(new, reload, server)

    def _apply(self, prepared: _Prepared) -> str:
        """Replace the runtime, right behind a commit; return what to log about it."""
        old, new = self.config, prepared.config
        self.metrics.observe_dead_letters(self.daemon.runtime.rejects.skipped)
        self.daemon.runtime, reset = prepared.reload.apply()
        self.config = new
        if old.bundle.manifest.model_id != new.bundle.manifest.model_id:
            self.metrics.set_model(new.bundle.manifest, self.daemon.pipeline.engine.name)
        if old.bundle.manifest.period_s != new.bundle.manifest.period_s:
            self._health.rates = SampleRateCheck(new.bundle.manifest.period_s)
        self.metrics.observe_level(new.run.interval_level)
        self._add_series()
        self._replace_server(old, new, prepared.server)
        self._control.close()
        self._open_control(new)
        if self._idle is not None:
            self._idle.timeout_s = wiring.stream_idle_timeout_s(new)
            self._idle.max_streams = wiring.watched_streams(new)
        logging.getLogger().setLevel(new.run.log_level.upper())
        self.daemon.commit()
        return f"model {new.bundle.manifest.model_id}, {reset} streams reset"

    def _new_server(self, new: ResolvedConfig) -> WebServer | None:
        """A server at a new address, open beside the old one; None where the address stays.  Raises ConfigError."""
        same = new.config.metrics.listen == self.config.config.metrics.listen and self._server is not None
        return None if same else self._open_server(new)

    def _replace_server(self, old: ResolvedConfig, new: ResolvedConfig, server: WebServer | None) -> None:
        """Go over to the new address, or to none; a new token needs a new server at the same address."""
        if server is None and new.config.metrics.enabled and new.token == old.token:
            return
        if self._server is not None:
            self._server.close()
        self._server = server or self._open_server(new)


def with_stored_client_id(config: ResolvedConfig) -> ResolvedConfig:
    """Give each broker without ``client_id`` the one of the state folder; without a folder nothing changes.

    Raises StoreError when it cannot be read or made.
    """
    brokers = [source.broker for source in config.sources] + [sink.broker for sink in config.sinks]
    nameless = [broker for broker in (*brokers, config.control_broker) if broker is not None and not broker.client_id]
    if not config.run.state_dir or not nameless:
        return config
    own = stored_client_id(Path(config.run.state_dir))

    def named(broker: BrokerConfig | None) -> BrokerConfig | None:
        return broker if broker is None or broker.client_id else structs.replace(broker, client_id=own)

    return replace(
        config,
        sources=tuple(replace(source, broker=named(source.broker)) for source in config.sources),
        sinks=tuple(replace(sink, broker=named(sink.broker)) for sink in config.sinks),
        control_broker=named(config.control_broker),
    )
