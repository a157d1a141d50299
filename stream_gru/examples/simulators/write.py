"""Recordings as CSV files, plain or gzipped; with data faults on request; the same seed gives the same bytes."""

import io
from dataclasses import dataclass, replace
from gzip import GzipFile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_gru.examples.simulators.pump import pump_parameters, simulate_pump
from stream_gru.examples.simulators.recording import F64, I64, NS_PER_S, Recording, simulate_sine, sine_phases

START_NS = 1_772_323_200 * NS_PER_S  # 2026-03-01T00:00:00Z


@dataclass(frozen=True)
class DataFaultRates:
    """How often each fault occurs; all zero gives a clean recording.

    Gaps are per 3600 rows, the others are shares of rows (`empty`: of values).
    """

    short_gaps: float = 3.0
    long_gaps: float = 0.25
    repeated: float = 0.001
    late: float = 0.001
    empty: float = 0.0005
    short_gap_rows: tuple[int, int] = (1, 4)
    long_gap_rows: tuple[int, int] = (60, 300)
    late_by_rows: tuple[int, int] = (1, 5)


DEFAULT_DATA_FAULTS = DataFaultRates()
NO_DATA_FAULTS = DataFaultRates(short_gaps=0.0, long_gaps=0.0, repeated=0.0, late=0.0, empty=0.0)


def apply_data_faults(clean: Recording, rates: DataFaultRates, rng: np.random.Generator) -> Recording:
    """Return the rows of a clean recording with faults, in the order of writing; `clean` is not changed.

    Without repeated times and sorted by time they are the clean rows, except for gaps and empty values.
    """
    kept = np.flatnonzero(~_missing(len(clean), rates, rng))
    emptied = replace(clean, values=_with_empty(clean.values, rates.empty, rng))
    return emptied.take(_written_order(kept, rates, rng))


def _missing(n: int, rates: DataFaultRates, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return (n,) True for rows in a gap."""
    missing = np.zeros(n, dtype=np.bool_)
    for per_hour, (least, most) in (
        (rates.short_gaps, rates.short_gap_rows),
        (rates.long_gaps, rates.long_gap_rows),
    ):
        count = int(rng.poisson(per_hour * n / 3600.0))
        firsts, lengths = rng.integers(0, max(n, 1), count), rng.integers(least, most + 1, count)
        for first, length in zip(firsts.tolist(), lengths.tolist(), strict=True):
            missing[first : first + length] = True
    return missing


def _with_empty(values: F64, share: float, rng: np.random.Generator) -> F64:
    """Return a copy of (N, C) values in which this share is NaN."""
    return np.where(rng.random(values.shape) < share, np.nan, values)


def _written_order(kept: I64, rates: DataFaultRates, rng: np.random.Generator) -> I64:
    """Return row numbers in the order of writing: late rows moved down, repeated rows directly twice."""
    n = len(kept)
    least, most = rates.late_by_rows
    # Half a row more than a whole number of rows, so that a late row comes after the row at that distance.
    delay = np.where(rng.random(n) < rates.late, rng.integers(least, most + 1, n) + 0.5, 0.0)
    ordered = kept[np.argsort(np.arange(n) + delay, kind="stable")]
    return np.repeat(ordered, np.where(rng.random(n) < rates.repeated, 2, 1))


def pump_recordings(
    hours: float, seed: int, pumps: int = 6, data_faults: DataFaultRates = DEFAULT_DATA_FAULTS, first: int = 1
) -> list[Recording]:
    """Return the recordings of pumps ``first`` .. ``first + pumps - 1``, with data faults.

    Pump k depends only on the seed and on k, so more pumps do not change the others.
    """
    recordings = []
    parameters = pump_parameters(first + pumps - 1, seed)
    for k in range(first, first + pumps):
        clean = simulate_pump(parameters[k - 1], hours, np.random.default_rng([seed, k, 1]), START_NS)
        recordings.append(apply_data_faults(clean, data_faults, np.random.default_rng([seed, k, 2])))
    return recordings


def write_pumps(
    out_dir: Path,
    hours: float,
    seed: int,
    pumps: int = 6,
    gzip: bool = False,
    data_faults: DataFaultRates = DEFAULT_DATA_FAULTS,
    first: int = 1,
    one_file: bool = False,
) -> list[Path]:
    """Write `pump-1.csv` ... (`.csv.gz` with gzip) into `out_dir`, which is created, and return the paths.

    With `one_file` all pumps go to `pumps.csv`, row by row in the order of arrival at a gateway.
    """
    recordings = pump_recordings(hours, seed, pumps, data_faults, first)
    if one_file:
        return [write_merged(recordings, _csv_path(out_dir, "pumps", gzip))]
    return [write_recording(recording, _csv_path(out_dir, recording.stream_id, gzip)) for recording in recordings]


def write_sines(out_dir: Path, hours: float, seed: int, streams: int = 4, gzip: bool = False) -> list[Path]:
    """Write `sine-1.csv` ... (`.csv.gz` with gzip) into `out_dir`, which is created, and return the paths."""
    paths = []
    for k, phase in enumerate(sine_phases(streams), start=1):
        recording = simulate_sine(f"sine-{k}", phase, hours, np.random.default_rng([seed, k]), START_NS)
        paths.append(write_recording(recording, _csv_path(out_dir, recording.stream_id, gzip)))
    return paths


def write_recording(recording: Recording, path: Path) -> Path:
    """Write a recording to `path`, gzipped when the name ends with `.gz`, and return the path."""
    return _write_text(csv_text(recording), path)


def write_merged(recordings: list[Recording], path: Path) -> Path:
    """Write the rows of several recordings to one file, in the order of arrival."""
    # A late row arrives after the row before it in its recording, so arrival is the running maximum.
    arrival = np.concatenate([np.maximum.accumulate(recording.time_ns) for recording in recordings])
    lines: list[str] = []
    for recording in recordings:
        head, *rows = csv_text(recording).splitlines(keepends=True)
        lines += rows
    return _write_text("".join([head, *(lines[row] for row in np.argsort(arrival, kind="stable"))]), path)


def _write_text(text: str, path: Path) -> Path:
    packed = text.encode("ascii")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_gzipped(packed) if path.suffix == ".gz" else packed)
    return path


def csv_text(recording: Recording) -> str:
    """Return the CSV: time (ISO 8601 UTC), stream, channels, mode if there are labels; NaN is empty."""
    head = ["time", recording.stream_column, *recording.channels]
    columns = [_iso(recording), [recording.stream_id] * len(recording)]
    columns += [_digits(recording.values[:, c], d) for c, d in enumerate(recording.decimals)]
    if recording.labels is not None:
        head.append("mode")
        columns.append(recording.labels.tolist())
    return "".join(",".join(row) + "\n" for row in [tuple(head), *zip(*columns, strict=True)])


def _csv_path(out_dir: Path, stream_id: str, gzip: bool) -> Path:
    return Path(out_dir) / f"{stream_id}.csv{'.gz' if gzip else ''}"


def _iso(recording: Recording) -> list[str]:
    unit = "datetime64[ms]" if np.any(recording.time_ns % NS_PER_S) else "datetime64[s]"
    stamps = recording.time_ns.astype("datetime64[ns]").astype(unit).astype(np.str_)
    return [f"{stamp}Z" for stamp in stamps.tolist()]


def _digits(values: F64, decimals: int) -> list[str]:
    # Adding 0.0 turns the -0.0 that rounding can give into 0.0.
    rounded = (np.round(values, decimals) + 0.0).tolist()
    return ["" if value != value else f"{value:.{decimals}f}" for value in rounded]


def _gzipped(text: bytes) -> bytes:
    """Return gzip bytes that depend only on the text: no timestamp and no file name in the header."""
    buffer = io.BytesIO()
    with GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as packed:
        packed.write(text)
    return buffer.getvalue()
