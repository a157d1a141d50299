"""Wrong uses of the public API: a type checker reports each one.

An unused ``type: ignore`` is an error too, so this file also fails when a wrong use is accepted.
"""

from __future__ import annotations

from stream_gru import Engine, Pipeline, Prediction, RawMessage, Sink, Source, load_bundle


class HalfEngine:
    """An engine without `scan`."""

    name = "half"
    input_size = state_size = output_size = 1


class TextSource:
    """A source whose poll returns text."""

    def poll(self, limit: int, timeout_s: float) -> list[str]:
        """Text in place of messages."""
        return []


def wrong(pipeline: Pipeline, out: Prediction, message: RawMessage) -> None:
    """Every statement is an error."""
    pipeline.push("pump-1", "2026-03-01T00:00:00Z", {"flow": "180"})  # type: ignore[dict-item]
    pipeline.push("pump-1", 1.0)  # type: ignore[call-arg]
    pipeline.push(1, 1.0, [1.0])  # type: ignore[arg-type]
    Pipeline("pump.bundle")  # type: ignore[arg-type]
    Pipeline(load_bundle("pump.bundle"), level=0.9)  # type: ignore[call-arg]
    out.forecast["flow"]  # type: ignore[index]
    out.status = "ok"  # type: ignore[misc]
    message.payload + ""  # type: ignore[operator]
    engine: Engine = HalfEngine()  # type: ignore[assignment]
    source: Source = TextSource()  # type: ignore[assignment]
    sink: Sink = print  # type: ignore[assignment]
    del engine, source, sink
