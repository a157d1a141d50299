"""Line protocol, read by a strict parser that shares no code with the writer."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
from hypothesis import given

from stream_gru.connectors.sinks.encoders import LineEncoder
from stream_gru.core.prediction import prediction_at
from stream_gru.core.types import PredictionBatch
from tests.support.batches import batch, prediction_batches
from tests.support.pipelines import toy_pipeline

Value = float | int | str | bool
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


class Reader:
    """Reads one line, character by character; anything unexpected is an AssertionError."""

    def __init__(self, line: str) -> None:
        self.line, self.at = line, 0

    def name(self, ends: str, escapable: str) -> str:
        """A measurement, key or tag up to one of ``ends``, which is not consumed."""
        found = ""
        while self.line[self.at] not in ends:
            char = self.line[self.at]
            if char == "\\":
                self.at += 1
                assert self.line[self.at] in escapable + "\\"
                char = self.line[self.at]
            else:
                assert char not in escapable + "\n\r"
            found += char
            self.at += 1
        assert found
        return found

    def eat(self, char: str) -> None:
        """Exactly this character."""
        assert self.line[self.at] == char
        self.at += 1

    def value(self) -> Value:
        """Text, boolean, integer or float."""
        if self.line[self.at] == '"':
            return self.text()
        end = min(place for place in (self.line.find(c, self.at) for c in ", ") if place > 0)
        word, self.at = self.line[self.at : end], end
        if word in ("true", "false"):
            return word == "true"
        if word.endswith("i"):
            return int(word[:-1])
        assert NUMBER.fullmatch(word), word
        return float(word)

    def text(self) -> str:
        """A quoted text."""
        self.at += 1
        found = ""
        while self.line[self.at] != '"':
            if self.line[self.at] == "\\":
                self.at += 1
                assert self.line[self.at] in '"\\'
            found += self.line[self.at]
            self.at += 1
        self.at += 1
        return found


def parse(line: str) -> tuple[str, dict[str, str], dict[str, Value], int]:
    """Measurement, tags, fields and nanoseconds of a line."""
    reader = Reader(line)
    measurement = reader.name(", ", ", ")
    tags: dict[str, str] = {}
    while reader.line[reader.at] == ",":
        reader.at += 1
        key = reader.name("=", ",= ")
        reader.eat("=")
        tags[key] = reader.name(", ", ",= ")
    reader.eat(" ")
    fields: dict[str, Value] = {}
    while True:
        key = reader.name("=", ",= ")
        reader.eat("=")
        assert key not in fields
        fields[key] = reader.value()
        if reader.line[reader.at] != ",":
            break
        reader.at += 1
    reader.eat(" ")
    return measurement, tags, fields, int(line[reader.at :])


def expected_fields(out: PredictionBatch, row: int) -> dict[str, Value]:
    """The fields of a row, from its record."""
    prediction = prediction_at(out, row)
    numbers: dict[str, float] = {f"p_{label}": p for label, p in (prediction.probabilities or {}).items()}
    for target, values in (prediction.forecast or {}).items():
        numbers |= {f"{target}_{h}": value for h, value in enumerate(values, 1)}
    for target, pairs in (prediction.interval or {}).items():
        for h, (low, high) in enumerate(pairs, 1):
            numbers |= {f"{target}_{h}_lower": low, f"{target}_{h}_upper": high}
    fields: dict[str, Value] = {key: value for key, value in numbers.items() if math.isfinite(value)}
    if prediction.label is not None:
        fields["class"] = "|".join(prediction.label) if isinstance(prediction.label, list) else prediction.label
    if prediction.alarm is not None:
        fields["alarm"] = prediction.alarm
    return fields | {"status": prediction.status, "steps": prediction.steps}


@given(prediction_batches())
def test_a_line_holds_the_values_of_its_prediction(out: PredictionBatch) -> None:
    """For any names, labels and streams; a value that is not finite is absent."""
    lines = LineEncoder("my, odd=name\\").encode(out).decode().split("\n")
    assert lines.pop() == ""
    assert len(lines) == len(out)
    for row, line in enumerate(lines):
        measurement, tags, fields, time_ns = parse(line)
        assert measurement == "my, odd=name\\"
        assert tags == {"stream": out.stream_names[out.stream_index[row]], "model": out.spec.model_id}
        expected = expected_fields(out, row)
        assert {k: np.float32(v) if isinstance(v, float) else v for k, v in fields.items()} == expected
        assert all(type(fields[key]) is type(value) for key, value in expected.items())
        assert time_ns == out.time_ns[row]


def test_a_line_as_it_is_written() -> None:
    """All horizons of a target are adjacent; there is no header."""
    out = toy_pipeline().process(batch(["pump 7"], [1.5]))
    spec = replace(out.spec, model_id="3f2a", targets=("flow, total", "p"), labels=("ok", "not ok"))
    line = LineEncoder().encode(replace(out, spec=spec, alarm=np.array([False]))).decode()
    assert LineEncoder().header(spec) == b""
    assert line.startswith(r"stream_gru,stream=pump\ 7,model=3f2a flow\,\ total_1=")
    assert re.search(
        r'p_not\\ ok=[\d.]+,class="(not )?ok",alarm=false,status="warming 1/2",steps=1i 1772323201500000000\n', line
    )
    assert line.index(r"flow\,\ total_1_upper=") < line.index(r"flow\,\ total_2=") < line.index(",p_1=")


def test_a_line_end_in_a_label_does_not_end_the_line() -> None:
    """It becomes a space: line protocol has no form for it."""
    out = toy_pipeline().process(batch(["p"] * 3, [1, 2, 3]))
    out = replace(out, spec=replace(out.spec, labels=("a\nb", "c\r\nd")))
    lines = LineEncoder("m").encode(out).decode().splitlines()
    assert len(lines) == 3
    assert "p_a b" in parse(lines[0])[2]
