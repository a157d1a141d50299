"""Files depend only on the seed, byte for byte, and can be read back."""

import csv
import gzip
from datetime import datetime
from pathlib import Path

import numpy as np

from stream_gru.examples.simulators.pump import MODES, pump_parameters, simulate_pump
from stream_gru.examples.simulators.recording import Recording, row_times
from stream_gru.examples.simulators.write import (
    NO_DATA_FAULTS,
    START_NS,
    DataFaultRates,
    csv_text,
    write_pumps,
    write_recording,
    write_sines,
)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file by column name."""
    with path.open(encoding="ascii", newline="") as file:
        return list(csv.DictReader(file))


def test_pump_files_have_the_stated_columns(tmp_path: Path) -> None:
    """Each pump has a file of its name with time, pump, four channels and a mode, from 2026-03-01 on."""
    paths = write_pumps(tmp_path / "made" / "here", 0.05, seed=1, pumps=3, data_faults=NO_DATA_FAULTS)
    assert [path.name for path in paths] == ["pump-1.csv", "pump-2.csv", "pump-3.csv"]
    for path in paths:
        rows = read_csv(path)
        assert list(rows[0]) == ["time", "pump", "flow", "pressure", "current", "vibration", "mode"]
        assert len(rows) == 180
        assert [row["time"] for row in rows[:2]] == ["2026-03-01T00:00:00Z", "2026-03-01T00:00:01Z"]
        assert {row["pump"] for row in rows} == {path.stem}
        assert {row["mode"] for row in rows} <= set(MODES)


def test_written_values_are_the_simulated_ones(tmp_path: Path) -> None:
    """A file holds the simulated values, rounded to the resolution of each sensor."""
    recording = simulate_pump(pump_parameters(1, 1)[0], 0.05, np.random.default_rng(0), START_NS)
    rows = read_csv(write_recording(recording, tmp_path / "pump-1.csv"))
    values = np.array([[float(row[name]) for name in recording.channels] for row in rows])
    assert np.all(np.abs(values - recording.values) <= 0.5001 * 10.0 ** -np.array(recording.decimals))
    assert {len(row["flow"].partition(".")[2]) for row in rows} == {2}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Plain and gzipped files repeat byte for byte in another folder, and another seed gives other bytes."""
    for gzipped in (False, True):
        first, again, other = (
            [path.read_bytes() for path in write_pumps(tmp_path / name, 0.05, seed, 2, gzip=gzipped)]
            for name, seed in (("a", 1), ("b", 1), ("c", 2))
        )
        assert first == again
        assert first != other


def test_gzip_holds_the_plain_file(tmp_path: Path) -> None:
    """Unpacked, a gzipped file is the plain file; its header has neither a time nor a name."""
    (plain,) = write_pumps(tmp_path, 0.05, seed=1, pumps=1)
    (packed,) = write_pumps(tmp_path, 0.05, seed=1, pumps=1, gzip=True)
    assert packed.name == "pump-1.csv.gz"
    data = packed.read_bytes()
    assert gzip.decompress(data) == plain.read_bytes()
    assert data[3] == 0
    assert data[4:8] == bytes(4)


def test_a_pump_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    """Pump 2 of three has the bytes of pump 2 of two."""
    of_two = write_pumps(tmp_path / "two", 0.05, seed=1, pumps=2)
    of_three = write_pumps(tmp_path / "three", 0.05, seed=1, pumps=3)
    assert of_two[1].read_bytes() == of_three[1].read_bytes()


def test_data_faults_are_in_the_file(tmp_path: Path) -> None:
    """Repeated, late and empty entries are in the file, and every time is a correct whole second."""
    rates = DataFaultRates(short_gaps=20.0, long_gaps=0.0, repeated=0.02, late=0.02, empty=0.02)
    (path,) = write_pumps(tmp_path, 0.5, seed=1, pumps=1, data_faults=rates)
    rows = read_csv(path)
    times = [datetime.fromisoformat(row["time"]).timestamp() for row in rows]
    assert times != sorted(times)
    assert len(set(times)) < len(times)
    assert any(row["flow"] == "" for row in rows)
    assert set(times) <= {START_NS / 1e9 + k for k in range(1800)}


def test_sine_files_have_the_stated_columns(tmp_path: Path) -> None:
    """Each sine has a file of its name with time, stream and x, and the same seed gives the same bytes."""
    paths = write_sines(tmp_path / "a", 0.1, seed=1, streams=2, gzip=False)
    again = write_sines(tmp_path / "b", 0.1, seed=1, streams=2, gzip=False)
    assert [path.name for path in paths] == ["sine-1.csv", "sine-2.csv"]
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
    rows = read_csv(paths[1])
    assert list(rows[0]) == ["time", "stream", "x"]
    assert {row["stream"] for row in rows} == {"sine-2"}
    assert len(rows) == 360


def test_special_values_are_written_plainly() -> None:
    """NaN is an empty field, a tiny negative number is 0.00, and a time between seconds has milliseconds."""
    values = np.array([[np.nan], [-0.001], [1.005]])
    text = csv_text(Recording("s", "stream", ("x",), (2,), row_times(3, START_NS, 0.5), values))
    assert text.splitlines()[1:] == [
        "2026-03-01T00:00:00.000Z,s,",
        "2026-03-01T00:00:00.500Z,s,0.00",
        "2026-03-01T00:00:01.000Z,s,1.00",
    ]
