"""What a configuration stores, and which delivery guarantees it cannot give."""

from __future__ import annotations

from collections.abc import Iterator

from stream_gru.runtime.resolved_config import ResolvedConfig
from stream_gru.runtime.wiring import build_rate_limit


def delivery_warnings(resolved: ResolvedConfig) -> Iterator[str]:
    """Where a configuration gives less than exactly once, a sentence each."""
    run = resolved.run
    if not run.state_dir and resolved.live:
        yield "run.state_dir is not set: states and pending outputs are lost with the process"
    for source in resolved.sources:
        if source.live and (not source.fields.input.time or source.format == "number"):
            yield f"source {source.name}: records carry no time: one that is sent again gets its new time of arrival"
        for line in source.config.delivery_warnings(source.broker):
            yield f"source {source.name}: {line}"
    if build_rate_limit(resolved) is not None:
        yield "limits: recent rates are not stored: after a kill other samples may be dropped than without it"
    for sink in resolved.sinks:
        for line in sink.config.delivery_warnings():
            yield f"sink {sink.name}: {line}"
