"""Silence: which streams nothing comes from any more.  Reads no clock: the caller says what time it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice


class IdleStreams:
    """Watches when streams were last heard.  ``after_s``: seconds without a sample after which a stream is silent.

    A stream that was never heard is not waited for.  Streams stand in the order in which they were last heard, so that
    a look costs as much as has changed, however many there are.

    Beyond ``max_streams`` the ones last heard longest ago are forgotten, those that are silent first: so whoever has a
    place among the ``max_streams`` heard last is watched.  Once a silent one was forgotten, an unknown stream may be
    it: it counts as one that came back.
    """

    def __init__(self, after_s: float, *, max_streams: int = 1_000_000) -> None:
        self.after_s, self.max_streams = after_s, max_streams
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._silent: OrderedDict[str, None] = OrderedDict()
        self._returned: dict[str, bool] = {}  # of those heard; whether it is certain
        self._forgot_silent = False

    @property
    def silent(self) -> int:
        """How many streams are silent."""
        return len(self._silent)

    def is_silent(self, stream: str) -> bool:
        """Whether a stream was found silent and has not come back."""
        return stream in self._silent

    def seen(self, streams: Iterable[str], now_s: float) -> None:
        """Something came from these streams; ``now_s`` never falls."""
        heard = self._heard
        for stream in streams:
            if stream in heard:
                heard.move_to_end(stream)
            elif stream in self._silent:
                del self._silent[stream]
                self._returned[stream] = True
            elif self._forgot_silent:
                self._returned[stream] = False
            heard[stream] = now_s
        self._make_room()

    def check(self, now_s: float) -> tuple[list[str], list[str]]:
        """Return which streams have fallen silent and which have come back since the last look.

        A stream that came back and fell silent again in between is in neither: nobody was told that it was back.
        """
        returned, self._returned = self._returned, {}
        fallen = []
        for stream in self._quiet(now_s):
            del self._heard[stream]
            self._silent[stream] = None
            if not returned.pop(stream, False):
                fallen.append(stream)
        return fallen, list(returned)

    def forget(self, stream: str) -> None:
        """Watch a stream no longer, until something comes from it again; quiet when it is unknown."""
        self._heard.pop(stream, None)
        self._silent.pop(stream, None)
        self._returned.pop(stream, None)

    def _make_room(self) -> None:
        """Forget what is beyond the bound."""
        for _ in range(len(self._heard) + len(self._silent) - self.max_streams):
            if self._silent:
                self._silent.popitem(last=False)
                self._forgot_silent = True
            else:
                stream, _heard_s = self._heard.popitem(last=False)
                self._returned.pop(stream, None)

    def _quiet(self, now_s: float) -> list[str]:
        """The streams at the front that were last heard too long ago."""
        quiet = 0
        for last_s in self._heard.values():
            if now_s - last_s < self.after_s:
                break
            quiet += 1
        return list(islice(self._heard, quiet))
