"""Topics: filters of a configuration, and topics of publishers."""

from __future__ import annotations

from collections.abc import Iterable

from stream_gru.config.topic_filters import (
    TopicPattern,
    fill_stream,
    filters_overlap,
    stream_filters,
    stream_in,
    topic_patterns,
)
from stream_gru.core.errors import ConfigError

_LONGEST = 1024  # of a filter in a configuration


class TopicTarget:
    """A piece is lines: filters, then topics; the first topic is also a stream."""

    words = (
        b"{stream}", b"{channel}", b"{x}", b"+", b"#", b"/", b"//", b"/+/", b"/#", b"$SYS", b"$share/g/", b"{",
        b"}", b"{stream}{x}",
        b"sensors", b"data", b"a" * 64, b"/" * 300,
    )  # fmt: skip

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """Only ConfigError is raised; what matches is named in full; filters that one topic matches overlap."""
        texts = [line[:_LONGEST] for line in b"\n".join(pieces).decode(errors="replace").split("\n")[:6]]
        patterns, seen = [], set()
        for text in texts:
            try:
                patterns.append(TopicPattern(text))
            except ConfigError:
                seen.add("no filter")
        for topic in texts:
            matching = [(pattern, found) for pattern in patterns if (found := pattern.match(topic)) is not None]
            for pattern, found in matching:
                assert set(found) <= set(pattern.names)
                if not pattern.filter.endswith("#"):
                    assert set(found) == set(pattern.names)
                    assert isinstance(pattern.stream_of(topic, found, ""), str)
                seen.add("matched")
            for one, _ in matching:
                assert all(filters_overlap(one.filter, other.filter) for other, _ in matching), "overlap not seen"
        for one in patterns:
            for other in patterns:
                assert filters_overlap(one.filter, other.filter) == filters_overlap(other.filter, one.filter)
        self._check_stream(texts[0], texts[-1])
        try:
            topic_patterns(texts, "{stream}" if variant & 1 else "")
        except ConfigError:
            seen.add("refused")
        return seen

    def _check_stream(self, template: str, stream: str) -> None:
        """The stream of a topic made for it is that stream again, where it is named once."""
        assert len(stream_filters(template)) == 8
        if template.count("{stream}") == 1 and stream:
            assert stream_in(template, fill_stream(template, stream)) == stream
