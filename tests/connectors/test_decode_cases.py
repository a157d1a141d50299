"""Decoding of files: ``tests/cases/decode/<case>/{config.toml, input.*}`` gives ``expected.jsonl``.

Each line of ``expected.jsonl`` is a sample; the last one holds the rejects by reason, or the error of the whole input.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from stream_gru.config import parse_config
from stream_gru.connectors.datasets import read_all
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import CATALOG, load_decoder
from stream_gru.connectors.sources.files import FileSource, file_format
from stream_gru.core.errors import DataError
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import SampleBatch
from tests.support.paths import CASES

FILE_CASES = sorted(path.name for path in (CASES / "decode").iterdir() if path.is_dir())


def decode_file(folder: Path, block_rows: int) -> list[dict[str, object]]:
    """Decode the input of a case, in the form of ``expected.jsonl``."""
    config = parse_config((folder / "config.toml").read_text(encoding="utf-8"), "config.toml", CATALOG)
    (path,) = folder.glob("input.*")
    fields = Fields.of(config.input, config.channel)
    kind = file_format(path, config.input.format)
    try:
        batch = read_all(FileSource([path], kind, block_rows), load_decoder(kind, fields), len(fields.columns))
        rejected = {reason.text: n for reason, n in sorted(batch.rejected_counts.items())}
        return [*sample_rows(batch), {"rejected": rejected}]
    except DataError as error:
        return [{"error": str(error).replace(f"{folder}/", "")}]


def sample_rows(batch: SampleBatch) -> list[dict[str, object]]:
    """The samples of a batch in the form of ``expected.jsonl``."""
    rows = []
    for i, time in enumerate(format_iso(batch.time_ns)):
        row: dict[str, object] = {"stream": batch.stream_names[batch.stream_index[i]], "time": time}
        row["values"] = [_plain(value) for value in batch.values[i].tolist()]
        if batch.device_seq is not None:
            row["seq"] = int(batch.device_seq[i])
        if batch.label is not None:
            row["label"] = batch.labels[batch.label[i]] if batch.label[i] >= 0 else None
        if batch.reset is not None:
            row["reset"] = bool(batch.reset[i])
        if batch.episode is not None:
            keys = batch.episode.tolist()
            row["sequence"] = -1 if keys[i] == -1 else keys.index(keys[i])  # the first row with this key
        rows.append(row)
    return rows


def _plain(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


@pytest.mark.parametrize("case", FILE_CASES)
def test_an_input_is_decoded_as_expected(case: str) -> None:
    """Samples, rejects by reason and errors of an input are those of ``expected.jsonl``."""
    lines = (CASES / "decode" / case / "expected.jsonl").read_text(encoding="utf-8").splitlines()
    assert decode_file(CASES / "decode" / case, 65_536) == [json.loads(line) for line in lines]


def test_the_cases_are_found() -> None:
    """A moved folder of cases fails the test."""
    assert len(FILE_CASES) >= 30
