"""Which streams are in memory, in the order in which they were last heard of."""

from __future__ import annotations

from collections.abc import Iterable


class LruKeys:
    """Names of streams; of more than ``most`` those that have been idle for longest may go."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._names: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def heard(self, names: Iterable[str]) -> None:
        """These are in memory, and the last that were heard of."""
        for name in names:
            self._names.pop(name, None)
            self._names[name] = None

    def drop(self, name: str) -> None:
        """Take a name out; quiet when it is unknown."""
        self._names.pop(name, None)

    def idle(self) -> list[str]:
        """Those beyond ``most``, idle for longest; they are no residents any more."""
        surplus = [name for name, _ in zip(self._names, range(len(self._names) - self.most), strict=False)]
        for name in surplus:
            del self._names[name]
        return surplus
