"""A store of one stateful part in memory, and hostile bytes for its `restore`."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from hypothesis import strategies as st

from stream_gru.core.errors import StateError
from stream_gru.core.protocols import Stateful


class StateStore:
    """A store of one component's states: takes only the dirty ones."""

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def commit(self, part: Stateful) -> None:
        """Store the dirty states."""
        for name in part.dirty_keys():
            data = part.snapshot(name)
            if data is None:
                self.rows.pop(name, None)
            else:
                self.rows[name] = data
        part.mark_clean()
        assert not part.dirty_keys()

    def fill(self, part: Stateful, seed: int = 0) -> None:
        """Restore all states into another component, in any order; none is dirty then."""
        for name in Random(seed).sample(sorted(self.rows), len(self.rows)):
            part.restore(name, self.rows[name])
        assert not part.dirty_keys()
        assert {name: part.snapshot(name) for name in self.rows} == self.rows


_int64 = st.integers(-(2**63), 2**63 - 1)
_leaves = (
    st.none() | st.booleans() | _int64 | st.just(2**63) | st.floats() | st.text(max_size=5) | st.binary(max_size=5)
)
_trees = st.recursive(_leaves, lambda inner: st.lists(inner, max_size=10), max_leaves=30)


@st.composite
def hostile_bytes(draw: st.DrawFn, genuine: bytes) -> bytes:
    """Draw any bytes; msgpack of anything; ``genuine`` bytes damaged, cut, or with one other value in them."""
    kind = draw(st.sampled_from(["any", "tree", "damaged", "cut", "changed", "changed", "changed"]))
    if kind == "any":
        return draw(st.binary(max_size=100))
    if kind == "tree":
        return msgspec.msgpack.encode(draw(_trees))
    place = draw(st.integers(0, max(0, len(genuine) - 1)))
    if kind == "damaged":
        return genuine[:place] + draw(st.binary(min_size=1, max_size=5)) + genuine[place + 1 :]
    if kind == "cut":
        return genuine[:place]
    return msgspec.msgpack.encode(_changed(draw, msgspec.msgpack.decode(genuine)))


def _changed(draw: st.DrawFn, tree: Any) -> Any:
    """Return the tree with another value at one place."""
    if not isinstance(tree, list) or not tree or draw(st.sampled_from([True, *[False] * 9])):
        return draw(_trees)
    place = draw(st.integers(0, len(tree) - 1))
    return [*tree[:place], _changed(draw, tree[place]), *tree[place + 1 :]]


def rejected_or_usable(part: Stateful, name: str, data: bytes, use: Callable[[], object]) -> None:
    """Assert that bytes are a StateError that changes nothing, or that the component works on and stores them."""
    before = part.snapshot(name)
    try:
        part.restore(name, data)
    except StateError:
        assert part.snapshot(name) == before
    else:
        use()
        again = part.snapshot(name)
        if again is not None:
            part.restore(name, again)
            assert part.snapshot(name) == again
