"""``python -m tests.fuzz.make_corpus``: the seeds, from the cases of the decoders, this file and `security_seeds`."""

from __future__ import annotations

import binascii
import io
import json
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

from stream_gru.connectors.registry import DECODERS
from tests.fuzz.security_seeds import SEEDS
from tests.fuzz.target_decoders import NAMES, STRUCT
from tests.fuzz.targets import CORPUS, TARGETS
from tests.support.paths import CASES

_MOST_BYTES = 2000
_MOST_SEEDS = 40
_MOST_STORIES = 12
FIRST_TIME = datetime(2024, 5, 1, 12, tzinfo=UTC)


def good_records() -> list[dict[str, object]]:
    """Good records, with every optional part."""
    return [
        {
            "time": (FIRST_TIME + timedelta(seconds=i)).isoformat(),
            "pump": f"p{i % 3}",
            "mode": ["on", "off", None][i % 3],
            "restart": i == 3,
            "run": f"r{i // 2}",
            "n": i,
            "flow": None if i == 4 else i + 0.25,
            "level": 2 * i,
        }
        for i in range(6)
    ]


def _of_stories(kind: str) -> Iterator[bytes]:
    """Payloads of the decode cases of a format, live and recorded."""
    for folder in sorted((CASES / "decode_live").glob(f"{kind}_*")):
        longer = [other for other in DECODERS.built_in if other.startswith(f"{kind}_")]
        if any(folder.name.startswith(f"{other}_") for other in longer):
            continue
        for line in (folder / "messages.jsonl").read_text().splitlines():
            message = json.loads(line)
            if isinstance(message.get("hex"), str):
                yield bytes.fromhex(message["hex"])
            elif isinstance(message.get("payload"), str):
                yield message["payload"].encode()
    prefix = {"csv": "csv", "jsonl": "json"}.get(kind)
    if prefix:
        for path in sorted((CASES / "decode").glob(f"{prefix}_*/input.{kind}")):
            yield path.read_bytes()


def _json(kind: str) -> Iterator[bytes]:
    every = good_records()
    if kind == "json":
        yield from (json.dumps(record).encode() for record in every)
        yield b'{"time":"2024-05-01T12:00:00Z","fields":{"flow":1.5},"tags":{"pump":"p1"}}'
    elif kind == "jsonl":
        yield "\n".join(map(json.dumps, every)).encode()
    elif kind == "json_array":
        yield json.dumps(every).encode()
        yield json.dumps(every[:1]).encode()
    elif kind == "json_vector":
        times = [record["time"] for record in every]
        yield json.dumps({"time": times, "v": [[i, 2 * i] for i in range(6)]}).encode()
        yield from (json.dumps({"time": time, "pump": "p1", "v": [1, 2.5]}).encode() for time in times)
    else:
        for i in range(6):
            pack = [
                {"bn": f"p{i}:", "bt": 1714564800 + i, "bu": "Cel"},
                {"n": "flow", "v": i},
                {"n": "level", "v": 2.5, "t": i},
            ]
            yield json.dumps(pack).encode()
        yield b'[{"n":"flow","v":1,"bv":2,"bver":10},{"n":"mode","vs":"on"},{"n":"restart","vb":true}]'


def _line_seeds(kind: str) -> Iterator[bytes]:
    every = good_records()
    rows = [["" if value is None else str(value) for value in record.values()] for record in every]
    if kind == "csv":
        yield "\n".join([",".join(NAMES), *map(",".join, rows)]).encode()
        yield "\n".join(map(",".join, rows)).encode()
        yield from (",".join(row).encode() for row in rows)
        yield b'time;flow;level\r\n1714564800;"1";2\r\n'
    elif kind == "plotter":
        yield from (",".join(f"{name}:{cell}" for name, cell in zip(NAMES, row, strict=True)).encode() for row in rows)
        yield b"flow level\n1 2\n3 4\n"
        yield b"flow: 21.5, level: 3\r\n"
    elif kind == "line_protocol":
        for i in range(6):
            yield b'pump,pump=p%d,site=a\\ b flow=%d.5,level=%di,restart=t,mode="o\\"n",n=%du %d' % (
                i, i, i, i, 1714564800000000000 + i,
            )  # fmt: skip
        yield b"m flow=1\nm level=2 1714564801000000000\n# a comment\n"
    else:
        yield from (b"21.5", b"-3", b"1e3", b".5", b" 7\r\n", b"+0.0", b"9007199254740992", b"5.", b"nan", b"OFF")


def _cbor() -> Iterator[bytes]:
    import cbor2

    every = good_records()
    yield cbor2.dumps(every)
    yield from (cbor2.dumps(record) for record in every)
    yield cbor2.dumps({1: 2, "flow": 1.5, b"k": None, "time": 1714564800})
    yield b"\xbf\x64flow\xf9\x3c\x00\x64time\x1a\x66\x32\x2d\xc0\xff"


def _binary() -> Iterator[bytes]:
    from cobs import cobs

    for i in range(8):
        inside = struct.pack(STRUCT, 1714564800.5 + i, b"p%d" % i, b"on", i == 3, b"r1", i, i + 0.25, float("nan"))
        yield cobs.encode(inside)
        yield cobs.encode(inside + binascii.crc_hqx(inside, 0xFFFF).to_bytes(2, "little"))
        yield cobs.encode(inside + zlib.crc32(inside).to_bytes(4, "little"))


def _parquet() -> Iterator[bytes]:
    import pyarrow as pa

    every = good_records()
    instants = [{**record, "time": datetime.fromisoformat(str(record["time"]))} for record in every]
    kinds = [pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.timestamp("s"), pa.date32()]
    for number, kind in enumerate(kinds):
        for text in (pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.large_string()):
            columns = {"time": kind, "pump": text, "mode": text, "restart": pa.bool_(), "run": text, "n": pa.int64()}
            schema = pa.schema([(name, columns.get(name, (pa.float64(), pa.float32())[number % 2])) for name in NAMES])
            buffer = io.BytesIO()
            with pa.ipc.new_stream(buffer, schema) as writer:
                writer.write_batch(pa.RecordBatch.from_pylist(instants[: number + 1], schema))
            yield buffer.getvalue()


def _framing(kind: str) -> Iterator[bytes]:
    end = b"\n" if kind == "lines" else b"\0"
    for i in range(4):
        yield end.join([b"flow:%d" % i] * (i + 1)) + end
    yield end * 5
    yield b"half a frame"
    yield b"x" * 70 + end + b"good" + end
    yield b"x" * 1500 + end + b"good" + end
    yield b"a\r\nb\r\n\r\n" + end
    yield bytes(range(256)) * 2
    yield end + b"\xef\xbb\xbf" + end + b" \t" + end


def _topic_seeds() -> Iterator[bytes]:
    yield from (
        b"sensors/{stream}/data\nsensors/p1/data", b"sensors/{stream}/{channel}\nsensors/p1/flow",
        b"{stream}/#\na/b/c",
        b"#\n$SYS/broker\na", b"+/+\n/\n//", b"$SYS/+\n$SYS/x", b"$share/g/a\na", b"a/{x}/b/{x}\na/1/b/1",
        b"a{stream}/b\nab/b",
        b"stream_gru/{stream}/prediction\np/1", b"plant/{site}/{stream}/#\nplant/a/b/c/d",
        b"a/+/c\na/b/c\na/b/#\n{stream}/b/c",
    )  # fmt: skip


def _recording_seeds() -> Iterator[bytes]:
    for i in range(4):
        yield b'{"source":"shop","key":"p%d","arrival_ns":1772323200000000000,"payload":"{\\"flow\\": 1.5}"}\n' % i
    yield b'{"source":"port","key":"port","arrival_ns":1,"payload":{"base64":"/wA="},"channel":"flow"}\n'
    yield b'{"fault":"too_large","source":"shop"}\n'
    yield b'{"header":"time,flow","payload":"1,2\\n3,4"}\n{"payload":""}\n'
    yield b'{"stream_gru_recording": 1, "created": "2026-03-01T00:00:00Z"}\n{"payload":"x"}\n'
    yield b'{"stream_gru_recording": 2}\n'
    yield b'{"payload":"half'
    yield b"{}\n" * 5


def parser_seeds(name: str) -> Iterator[bytes]:
    """All seeds of a target."""
    if name in ("json", "jsonl", "json_array", "json_vector", "senml"):
        yield from _json(name)
    elif name in ("csv", "plotter", "line_protocol", "number"):
        yield from _line_seeds(name)
    elif name.startswith("framing_"):
        yield from _framing(name.removeprefix("framing_"))
    else:
        yield from {
            "cbor": _cbor,
            "binary": _binary,
            "parquet": _parquet,
            "topics": _topic_seeds,
            "recording": _recording_seeds,
        }[name]()
    if name in DECODERS.built_in:
        yield from islice(_of_stories(name), _MOST_STORIES)


def main() -> None:
    """Write all seeds again; each is short and unique."""
    for name in TARGETS:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        if name in SEEDS:
            chosen = list(SEEDS[name]())
        else:
            chosen = [seed for seed in dict.fromkeys(parser_seeds(name)) if len(seed) <= _MOST_BYTES][:_MOST_SEEDS]
        for number, seed in enumerate(chosen):
            (folder / f"{number:02}").write_bytes(seed)


if __name__ == "__main__":
    main()
