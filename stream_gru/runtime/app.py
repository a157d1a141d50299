"""The gateway: a plan carried out.  It builds the daemon with everything around it, and takes a new plan while it runs.

A reload (SIGHUP) makes a new plan first; when that fails the old one goes on.  Then, between two batches, the pipeline
is swapped, and only sources and sinks whose tables have changed are closed and built anew: an unchanged connection is
kept, with what waits in it, and an MQTT source whose topics alone have changed subscribes to the difference.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from typing import NamedTuple

from stream_gru import __version__
from stream_gru.connectors.sinks.registry import build_sink
from stream_gru.connectors.sources.registry import build_source
from stream_gru.core.errors import ConfigError, StoreError, StreamGruError
from stream_gru.core.protocols import Engine, Sink
from stream_gru.model.engines.base import TimedEngine
from stream_gru.model.engines.registry import load_engine
from stream_gru.pipeline.alarms import AlarmRule
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.control.commands import Commands, PauseFilter
from stream_gru.runtime.daemon import Daemon, Input
from stream_gru.runtime.delivery_guarantees import (
    assembly_part,
    build_store,
    commit_interval_s,
    policy,
    register_stateful,
)
from stream_gru.runtime.housekeeping import Caretaker
from stream_gru.runtime.http.api import Api, DaemonStatus, StreamStatus
from stream_gru.runtime.http.broadcast import OutputBroadcaster
from stream_gru.runtime.http.server import WebServer
from stream_gru.runtime.ingest.ingest import Intake
from stream_gru.runtime.liveness import IdleStreams
from stream_gru.runtime.metrics import Metrics, build_registry
from stream_gru.runtime.reload import Exchange
from stream_gru.runtime.resolved_config import ResolvedConfig, SinkSpec, SourceSpec, resolve_file
from stream_gru.runtime.sample_rate_check import SampleRateCheck
from stream_gru.runtime.systemd import SystemdNotifier
from stream_gru.runtime.wiring import (
    assembly_spec,
    build_assembler,
    build_intake,
    build_rate,
    build_reject_reporter,
    stream_bound,
    stream_idle_timeout_s,
    watched_streams,
)

log = logging.getLogger(__name__)

_STUCK_S = 60.0


class _Prepared(NamedTuple):
    """A plan that can be taken, and what was made for it beside the one that runs."""

    plan: ResolvedConfig
    engine: Engine
    server: WebServer | None
    exchange: Exchange


class Gateway:
    """A running configuration."""

    def __init__(self, plan: ResolvedConfig) -> None:
        self.plan = plan
        self._bell = threading.Event()
        self._gate, self._commands, self._feed = PauseFilter(), Commands(), OutputBroadcaster()
        engine = load_engine(plan.run.engine, plan.bundle)
        self.metrics = Metrics(build_registry(), plan.bundle.manifest, engine.name, __version__)
        self.metrics.observe_level(plan.run.interval_level)
        self.pipeline = Pipeline(
            plan.bundle,
            TimedEngine(engine, self.metrics.observe_inference),
            interval_level=plan.run.interval_level,
            interval_adapt_rate=plan.run.interval_adapt_rate,
            max_streams=stream_bound(plan),
            alarm=AlarmRule.of(plan.config.alarm),
        )
        self.keeper = Checkpointer(self.pipeline, build_store(plan), policy=policy(plan))
        self._silence = (
            IdleStreams(stream_idle_timeout_s(plan), max_streams=watched_streams(plan)) if plan.live else None
        )
        self.caretaker = Caretaker(
            self.pipeline,
            keeper=self.keeper,
            gate=self._gate,
            commands=self._commands,
            silence=self._silence,
            pace=SampleRateCheck(plan.bundle.manifest.period_s),
            metrics=self.metrics,
            notifier=SystemdNotifier(),
        )
        self._assembler, self._rate = build_assembler(plan), build_rate(plan)
        self.daemon = Daemon(
            [self._input(one, plan) for one in plan.sources],
            self.pipeline,
            {},
            keeper=self.keeper,
            caretaker=self.caretaker,
            metrics=self.metrics,
            broadcast=self._feed.write,
            bell=self._bell,
            batch_rows=plan.run.batch_rows,
            commit_every=plan.run.commit_every,
            commit_interval_s=commit_interval_s(plan),
        )
        self.daemon.sinks = {one.name: self._sink(one, plan) for one in plan.sinks}
        self._introduce()
        self._server: WebServer | None = None
        self._control: ExitStack = ExitStack()
        self._started_s = time.monotonic()
        self._announce()

    @property
    def address(self) -> str:
        """Where the endpoints are, or nothing."""
        return "" if self._server is None else self._server.address

    def open(self) -> None:
        """Open what stands beside the loop: endpoints and control.

        Raises ConfigError when the address is taken, StoreLocked when another process has the state.
        """
        if self.keeper.store is not None:
            self.keeper.store.acquire_lock()  # who comes second learns who has the state, and not that a port is taken
        self._server = self._open_server(self.plan)
        self._open_control(self.plan)
        self.metrics.observe_reload(time.time(), well=True)

    def close(self) -> None:
        """Close it again."""
        self._feed.close()
        self._control.close()
        if self._server is not None:
            self._server.close()
            self._server = None

    def reload(self) -> None:
        """Read the configuration again and take it, or say why not and go on as before; called by the loop.

        Raises what a commit raises, and what fails once the old plan is given up: these end the daemon.
        """
        self.caretaker.notifier.reloading()
        self.daemon.commit()
        try:
            prepared = self._prepare(resolve_file(self.plan.path))
        except StoreError:
            raise
        except StreamGruError as error:
            log.error("the new configuration is not taken: %s", error)
            self.metrics.observe_reload(time.time(), well=False)
        else:
            log.info("configuration taken: %s", self._take(prepared))
            self.metrics.observe_reload(time.time(), well=True)
        self.caretaker.notifier.ready()

    # ---- building -------------------------------------------------------------------------------------------------

    def _input(self, planned: SourceSpec, plan: ResolvedConfig) -> Input:
        source = build_source(
            planned.config,
            planned.name,
            planned.format,
            broker=planned.broker,
            state_dir=plan.run.state_dir,
            # A paced recording is committed between its blocks: small ones.
            batch_rows=1 if getattr(planned.config, "speed", 0.0) else plan.run.batch_rows,
            alone=len(plan.sources) == 1,
            bell=self._bell.set,
        )
        return Input(
            planned.name,
            source,
            {planned.name: self._intake(planned)},
            speed=getattr(planned.config, "speed", 0.0),
            window=getattr(source, "window", 0),
        )

    def _intake(self, planned: SourceSpec) -> Intake:
        return build_intake(planned, self._assembler, self._gate, stream_bound(self.plan), self._rate)

    def _sink(self, planned: SinkSpec, plan: ResolvedConfig) -> Sink:
        return build_sink(
            planned.config,
            planned.name,
            broker=planned.broker,
            manifest=plan.bundle.manifest,
            immediate=plan.run.emit == "immediate",
        )

    def _introduce(self) -> None:
        """Let those who look after all parts know which ones there are now."""
        inputs = {one.name: one for one in self.daemon.inputs}
        self.daemon.reject_reporter.close()
        self.daemon.reject_reporter = build_reject_reporter(self.plan)
        register_stateful(self.keeper, self.plan, inputs, self.daemon.sinks, self._assembler, self._gate)

    def _announce(self) -> None:
        """Begin the series of all sources and sinks."""
        for source in self.plan.sources:
            self.metrics.add_source(source.name, connected=False)
        for sink in self.plan.sinks:
            self.metrics.add_sink(sink.name, connected=False)

    def _open_server(self, plan: ResolvedConfig) -> WebServer | None:
        if not plan.config.metrics.enabled:
            return None
        api = Api(
            status=self.status,
            streams=self.streams,
            feed=self._feed,
            commands=self._commands,
            token=plan.token,
            refused=self._refused,
        )
        server = WebServer(
            plan.config.metrics.listen, self.metrics.registry, healthy=self.healthy, ready=self.ready, api=api
        )
        server.open()
        return server

    def _open_control(self, plan: ResolvedConfig) -> None:
        if plan.control_broker is not None:
            from stream_gru.runtime.control.mqtt import ControlMqtt

            control = ControlMqtt(plan.config.control, plan.control_broker, self._commands, self._refused)
            control.open()
            self._control.callback(control.close)

    def _refused(self, action: str, _: str) -> None:
        """A command that never reached the loop."""
        self.metrics.observe_command(action, well=False)

    # ---- what others ask, from their own threads --------------------------------------------------------------------

    def healthy(self) -> tuple[bool, str]:
        """Whether the loop turns."""
        age_s = time.monotonic() - self.daemon.last_turn_s
        well = not self.daemon.ready or age_s < _STUCK_S
        return well, "healthy" if well else f"the loop has not turned for {age_s:.0f} s"

    def ready(self) -> tuple[bool, str]:
        """Whether samples are taken."""
        return self.daemon.ready, "ready" if self.daemon.ready else "not ready"

    def status(self) -> DaemonStatus:
        """What runs, and how sources and sinks are doing."""
        daemon, summary = self.daemon, self.daemon.summary
        return DaemonStatus(
            version=__version__,
            model_id=self.pipeline.spec.model_id,
            engine=self.pipeline.engine.name,
            ready=daemon.ready,
            uptime_s=time.monotonic() - self._started_s,
            streams=len(self.pipeline.streams),
            sources={one.name: one.source.health() for one in daemon.inputs},
            sinks={name: sink.health() for name, sink in daemon.sinks.items()},
            counts={
                "received": summary.received,
                "applied": summary.applied,
                **{f"dropped_{reason}": n for reason, n in summary.dropped.items() if n},
            },
            paused=self._gate.names,
            paused_all=self._gate.everyone,
            resumed=self._gate.resumed,
        )

    def streams(self, limit: int) -> list[StreamStatus]:
        """One entry for each stream, at most ``limit``."""
        return [
            StreamStatus(name, time_text, steps, self._stream_status(name))
            for name, time_text, steps in self.pipeline.stream_progress(limit)
        ]

    def _stream_status(self, stream: str) -> str:
        if stream in self._gate:
            return "paused"
        return "silent" if self.caretaker.is_silent(stream) else "online"

    # ---- taking a new plan ------------------------------------------------------------------------------------------

    def _prepare(self, new: ResolvedConfig) -> _Prepared:
        """All of a new plan that can fail, beside the old one, which goes on as if nothing had been when it does.

        Raises ConfigError, BundleError, DataError, SinkUnavailable, StateError; StoreError.
        """
        old = self.plan
        if not old.live:
            raise ConfigError(f"{new.path}: a recording is not reloaded")
        if old.run.state_dir != new.run.state_dir:
            raise ConfigError(f"{new.path}: run.state_dir: stays as it is while the daemon runs; restart it")
        if new.run.on_model_change == "reject" and old.bundle.manifest.model_id != new.bundle.manifest.model_id:
            raise ConfigError(f'{new.path}: run.bundle: is another model, and run.on_model_change = "reject"')
        engine = load_engine(new.run.engine, new.bundle)
        with ExitStack() as undo:
            server = self._new_server(old, new)
            if server is not None:
                undo.callback(server.close)
            exchange = Exchange(self.daemon, self.keeper, old, new, self._sink)
            exchange.open_sinks(undo)
            undo.pop_all()
        return _Prepared(new, engine, server, exchange)

    def _take(self, prepared: _Prepared) -> str:
        """Carry out a new plan in place of the old one, right behind a commit; return what to say of it."""
        old, new = self.plan, prepared.plan
        engine, server, exchange = prepared.engine, prepared.server, prepared.exchange
        reset = self.pipeline.swap(
            new.bundle,
            TimedEngine(engine, self.metrics.observe_inference),
            interval_level=new.run.interval_level,
            interval_adapt_rate=new.run.interval_adapt_rate,
            max_streams=stream_bound(new),
            alarm=AlarmRule.of(new.config.alarm),
        )
        self.keeper.set_policy(policy(new))
        self.plan = new
        if old.bundle.manifest.model_id != new.bundle.manifest.model_id:
            self.metrics.set_model(new.bundle.manifest, engine.name)
        if old.bundle.manifest.period_s != new.bundle.manifest.period_s:
            self.caretaker.pace = SampleRateCheck(new.bundle.manifest.period_s)
        self.metrics.observe_level(new.run.interval_level)
        self._announce()
        self._replace_server(old, new, server)
        self.daemon.sinks = exchange.sinks()
        if old.config.limits != new.config.limits:
            self._rate = build_rate(new)
        if assembly_spec(old) != assembly_spec(new):
            self._assembler = build_assembler(new)
            self.keeper.discard_component(assembly_part(old))
        self.daemon.inputs = exchange.inputs(self._input, self._intake)
        for intake in (intake for one in self.daemon.inputs for intake in one.intakes.values()):
            intake.adapt(self._assembler, self._rate, stream_bound(new))
        self._control.close()
        self._open_control(new)
        self.daemon.batch_rows = new.run.batch_rows
        self.daemon.commit_every, self.daemon.commit_interval_s = new.run.commit_every, commit_interval_s(new)
        if self._silence is not None:
            self._silence.after_s, self._silence.max_streams = stream_idle_timeout_s(new), watched_streams(new)
        logging.getLogger().setLevel(new.run.log_level.upper())
        self._introduce()
        self.daemon.commit()
        return f"model {new.bundle.manifest.model_id}, {reset} streams are reset"

    def _new_server(self, old: ResolvedConfig, new: ResolvedConfig) -> WebServer | None:
        """A server at another address, open beside the old one; None where the address stays.  Raises ConfigError."""
        same = new.config.metrics.listen == old.config.metrics.listen and self._server is not None
        return None if same else self._open_server(new)

    def _replace_server(self, old: ResolvedConfig, new: ResolvedConfig, server: WebServer | None) -> None:
        """Go over to the other address, or to none; another token needs a new server at the same one."""
        if server is None and new.config.metrics.enabled and new.token == old.token:
            return
        if self._server is not None:
            self._server.close()
        self._server = server or self._open_server(new)
