"""Seeds of the targets `bundle`, `config` and `http`: a small model, configurations, requests."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from stream_gru.config import sample_config
from stream_gru.connectors.registry import CATALOG
from stream_gru.model.bundle import MANIFEST, TFLITE, WEIGHTS, write_bundle
from tests.fuzz.target_bundle import good_bundle
from tests.support.fake_daemon import TOKEN
from tests.support.paths import CASES

_HOST = b"Host: localhost\r\n"
_JSON = b"Content-Type: application/json\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n"


def bundle_seeds() -> Iterator[bytes]:
    """Its manifest, its weights, arrays of them, something in the place of a flatbuffer."""
    made = good_bundle()
    with tempfile.TemporaryDirectory() as folder:
        path = write_bundle(Path(folder) / "a", made.manifest, made.weights, {TFLITE: b"flatbuffer"}).path
        yield (path / MANIFEST).read_bytes()
        yield (path / WEIGHTS).read_bytes()
        with zipfile.ZipFile(io.BytesIO((path / WEIGHTS).read_bytes())) as archive:
            for name in ("recurrent_0/kernel", "scaling/scale", "forecast/bias", "embedding_3/embeddings"):
                yield archive.read(f"{name}.npy")
    yield b"flatbuffer"


_GOOD = (
    '[[source]]\ntype = "stdin"\nformat = "csv"\n[source.input]\ndelimiter = ";"\ntime = ""\n',
    '[[source]]\ntype = "serial"\nport = "/dev/ttyUSB0"\nformat = "json"\nbaud_rate = 9600\nparity = "even"\n',
    '[[source]]\ntype = "serial"\nport = "x"\nformat = "binary"\nframing = "cobs"\n[source.input]\nstruct = "<If"\n',
    '[[broker]]\nurl = "mqtts://host:8883"\nca_file = "ca.pem"\nuser = "u"\npassword_file = "p"\n'
    '[[source]]\ntype = "mqtt"\ntopics = ["a/{stream}/b", "c/+"]\nformat = "senml"\nqos = 0\n',
    '[[broker]]\nurl = "mqtt://[::1]"\n[[sink]]\ntype = "mqtt"\ntopic = "x/{stream}"\nhome_assistant = true\n'
    '[control]\nmqtt = true\n',
    '[[sink]]\ntype = "influx"\nurl = "http://h:8086/write?db=x&p=y"\nwhen_full = "block"\n'
    '[metrics]\nlisten = "[::1]:0"\n',
    '[[sink]]\ntype = "file"\npath = "a.csv.gz"\nrotate_s = 3600\nmax_files = 3\n'
    '[alarm]\nclasses = ["bad"]\nconsecutive_misses = 3\n',
    '[channel_join]\nhold_s = 1e3\nallowed_lateness_s = 0.5\n'
    '[run]\nbundle = "b"\ninterval_level = 0.5\nstream_idle_timeout_s = 1_000\n',
    '[data]\nfiles = ["a", \'b\']\nperiod_s = 0.1\n'
    '[split]\nby = "stream"\nvalidation_streams = ["a*"]\ntest_streams = ["b"]\n',
    '[[channel]]\nname = "a"\nmin = -1\nmax = +2.5\n'
    '[[channel]]\nname = "k"\ncategories = 4\n[model]\ncalendar = ["hour_of_day"]\n'
    '[[model.layer]]\nunits = 8\n'
    '[[model.embedding]]\nchannel = "k"\nunits = 2\n[model.forecast]\ntargets = ["a"]\nhorizon = 3\n',
    '[training]\nregime = "windowed"\nwindow = 8\nstride = 2\nschedule = "cosine"\n'
    '[conditioning]\nmax_fill_steps = 0\n',
)  # fmt: skip


def config_seeds() -> Iterator[bytes]:
    """The samples, tables of all kinds, and some of the cases of mistakes."""
    for purpose in ("train", "run"):
        lines = sample_config(purpose, CATALOG).splitlines()
        bare = [line.partition("  #")[0].rstrip() for line in lines if line.strip() and not line.startswith("#")]
        yield "\n".join(bare).encode()
    for text in _GOOD:
        yield text.encode()
    for file in sorted(CASES.glob("config/*/config.toml"))[::7]:
        yield file.read_bytes()


def request_seeds() -> Iterator[bytes]:
    """Requests of all routes, good and bad."""
    for path in (
        "/metrics",
        "/-/healthy",
        "/api/v1/status",
        "/api/v1/streams?limit=5",
        "/api/v1/outputs?stream=a",
        "/x",
    ):
        yield b"GET " + path.encode() + b" HTTP/1.1\r\n" + _HOST + b"Accept: */*\r\n\r\n"
    yield b"HEAD /api/v1/outputs HTTP/1.1\r\n" + _HOST + b"\r\n"
    yield b"GET /metrics HTTP/1.0\r\n\r\n"
    for action in ("reset", "pause", "resume"):
        body = b'{"stream": "a"}'
        head = f"POST /api/v1/{action} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
        yield head + _HOST + _JSON + b"\r\n" + body
    yield (
        b"POST /api/v1/reset HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
        + _HOST
        + _JSON
        + b'\r\n5\r\n{"all\r\n7\r\n":true}\r\n0\r\n\r\n'
    )
    yield b"POST /api/v1/pause HTTP/1.1\r\nContent-Length: 2\r\nContent-Type: application/json\r\n" + _HOST + b"\r\n{}"
    yield (
        b"POST /api/v1/pause HTTP/1.1\r\nContent-Length: 12\r\nExpect: 100-continue\r\n"
        + _HOST
        + _JSON
        + b'\r\n{"all":true}'
    )


SEEDS = {"bundle": bundle_seeds, "config": config_seeds, "http": request_seeds}
