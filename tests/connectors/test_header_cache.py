"""The header cache of decoders: bounded, and restored after a restart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.csv_decoders import CsvDecoder, HeaderCache
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.number_decoders import PlotterDecoder
from stream_gru.connectors.registry import DECODERS, load_decoder
from stream_gru.core.errors import StateError
from stream_gru.core.protocols import HasState
from stream_gru.core.types import RawMessage
from tests.support.batches import NOON_NS
from tests.support.stateful_parts import StateStore, hostile_bytes, rejected_or_usable

FIELDS = Fields(InputConfig(time=""), ("temp", "hum"))


def keyed_message(key: str, payload: bytes = b"", source: str = "") -> RawMessage:
    """A live message."""
    return RawMessage(payload, key, arrival_ns=NOON_NS, source=source)


def test_the_cache_is_bounded() -> None:
    """Only the most recently used devices are kept."""
    memory = HeaderCache(list)
    for number in range(10_000):
        memory.learn(keyed_message(f"p{number}"), [str(number)])
        assert memory.lookup(keyed_message("p7")) == (["7"] if number >= 7 else None)
    known = [number for number in range(10_000) if memory.lookup(keyed_message(f"p{number}")) is not None]
    assert known == [7, *range(10_000 - 4095, 10_000)]


def test_a_repeated_header_counts_as_use_and_replaces_the_names() -> None:
    """Repeating its header counts as use of a device."""
    memory = HeaderCache("".join)
    for number in range(4096):
        memory.learn(keyed_message(f"p{number}"), ["a"])
    memory.learn(keyed_message("p0"), ["b", "c"])
    memory.learn(keyed_message("one more"), ["a"])
    assert [memory.lookup(keyed_message(key)) for key in ("p0", "p1", "p2")] == ["bc", None, "a"]


@pytest.mark.parametrize("key", ["", "a+b", "ü", "x" * 129])
def test_a_key_that_is_no_stream_id_is_not_kept(key: str) -> None:
    """Its samples would be rejected, so it takes no place in the cache."""
    memory = HeaderCache(list)
    memory.learn(keyed_message(key), ["a"])
    assert memory.lookup(keyed_message(key)) is None
    assert not memory.dirty_keys()


def test_devices_of_the_same_key_of_two_sources_are_two() -> None:
    """In a recording of several sources; neither key is a stream's name."""
    memory = HeaderCache(list)
    memory.learn(keyed_message("p", source="a"), ["x"])
    memory.learn(keyed_message("p", source="b"), ["y"])
    assert [memory.lookup(keyed_message("p", source=source)) for source in ("a", "", "b")] == [["x"], None, ["y"]]
    memory.evict("p")
    assert memory.lookup(keyed_message("p", source="a")) == ["x"]


@pytest.mark.parametrize(
    ("kind", "header", "line"), [("csv", b"temp,hum", b"1,2"), ("plotter", b"temp hum", b"1 2")], ids=["csv", "plotter"]
)
def test_other_devices_do_not_evict_an_active_one(kind: str, header: bytes, line: bytes) -> None:
    """A device that sends values stays in the cache, however many others send only headers."""
    decoder = load_decoder(kind, FIELDS)
    decoder.decode([RawMessage(header, "good", arrival_ns=NOON_NS)])
    for number in range(5):
        others = [RawMessage(header, f"p{number}/{other}", arrival_ns=NOON_NS) for other in range(4000)]
        assert len(decoder.decode([*others, RawMessage(line, "good", arrival_ns=NOON_NS)])) == 1


uses = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pqrs"), st.booleans(), st.booleans()), max_size=40)


@given(uses)
def test_restarts_keep_the_order_of_eviction(moves: list[tuple[str, str, bool, bool]]) -> None:
    """Changes are stored and restored in any order: the cache has the same devices and the same bytes at any time."""
    whole, one, stored = HeaderCache(list, devices=3), HeaderCache(list, devices=3), StateStore()
    names = [f"{source}\t{key}" for source in "ab" for key in "pqrs"]
    for number, (source, key, says, restart) in enumerate(moves):
        message = keyed_message(key, source=source)
        for memory in (whole, one):
            if says:
                memory.learn(message, [key, str(number)])
        assert one.lookup(message) == whole.lookup(message)
        held = {name: one.snapshot(name) for name in names}
        assert held == {name: whole.snapshot(name) for name in names}
        assert {name for name in names if held[name] != stored.rows.get(name)} <= set(one.dirty_keys())
        if restart:
            stored.commit(one)
            one = HeaderCache(list, devices=3)
            stored.fill(one, number)


header_lines = st.sampled_from(
    [b"temp,hum", b"hum,temp", b"1,2", b"3", b"5,6", b"1,2,3", b"temp hum", b"x temp hum", b"7 8", b"?"]
)


@pytest.mark.parametrize("kind", ["csv", "plotter"])
@given(keyed_lines=st.lists(st.tuples(st.sampled_from("pq"), header_lines), max_size=15), place=st.integers(0, 15))
def test_a_decoder_continues_after_a_restart(kind: str, keyed_lines: list[tuple[str, bytes]], place: int) -> None:
    """At any message, also between a header and its values."""
    messages = [keyed_message(key, line, "s") for key, line in keyed_lines]
    whole, one, stored = load_decoder(kind, FIELDS), load_decoder(kind, FIELDS), StateStore()
    assert isinstance(one, CsvDecoder | PlotterDecoder)
    found = [one.decode(messages[:place])]
    stored.commit(one.state)
    one = load_decoder(kind, FIELDS)
    assert isinstance(one, CsvDecoder | PlotterDecoder)
    stored.fill(one.state)
    found.append(one.decode(messages[place:]))
    expected = [whole.decode(messages[:place]), whole.decode(messages[place:])]
    assert [batch.values.tolist() for batch in found] == [batch.values.tolist() for batch in expected]
    assert [batch.rejected for batch in found] == [batch.rejected for batch in expected]


@pytest.mark.parametrize("kind", ["csv", "plotter"])
@given(data=st.data())
def test_foreign_bytes_are_a_state_error_only(kind: str, data: st.DataObject) -> None:
    """Invalid bytes raise StateError or load; then later lines raise nothing."""
    one, other = load_decoder(kind, FIELDS), load_decoder(kind, FIELDS)
    assert isinstance(one, CsvDecoder | PlotterDecoder)
    assert isinstance(other, CsvDecoder | PlotterDecoder)
    keyed_lines = [
        keyed_message("p", b"temp,hum", "s"),
        keyed_message("p", b"1,2", "s"),
        keyed_message("q", b"hum,temp", "s"),
        keyed_message("q", b"", "s"),
    ]
    one.decode(keyed_lines)
    genuine = one.state.snapshot("s\tp")
    assert genuine is not None
    rejected_or_usable(other.state, "s\tp", data.draw(hostile_bytes(genuine)), lambda: other.decode(keyed_lines[1:]))


@pytest.mark.parametrize("name", ["", "p", "s\t", "s\tü", "s\tp\t"])
def test_a_name_of_no_device_is_an_error(name: str) -> None:
    """A decoder never stores such a state."""
    memory = HeaderCache(list)
    memory.learn(keyed_message("p", source="s"), ["a"])
    genuine = memory.snapshot("s\tp")
    assert genuine is not None
    with pytest.raises(StateError, match="expected the name of a source, a tab and a stream id"):
        memory.restore(name, genuine)


@pytest.mark.parametrize("kind", [kind for kind in DECODERS.built_in if kind not in ("parquet", "cbor", "binary")])
def test_only_formats_whose_lines_need_earlier_ones_remember(kind: str) -> None:
    """A decoder that caches headers has a `state`; the others have none."""
    assert isinstance(load_decoder(kind, FIELDS), HasState) == (kind in ("csv", "plotter"))
