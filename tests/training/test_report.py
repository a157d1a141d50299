"""The report is one self-contained file, whatever the scores and the names are."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from msgspec.structs import replace

from stream_gru.core.types import F64, NS_PER_S, OutputSpec, PredictionBatch
from stream_gru.model.manifest import Channel, Classes, Forecast, Manifest
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.training.evaluation.evaluate import StreamedRecording
from stream_gru.training.evaluation.scores import ClassScores, ErrorScores, ForecastScores, Scores, class_scores
from tests.support.models import make_bundle

pytest.importorskip("matplotlib")

from stream_gru.training.figures import best_position, draw_learning, figure_style, printable
from stream_gru.training.report import assess, duration, find_excerpt, render_report
from tests.support.batches import START_NS

FORECAST = ["Forecasts and truth", "Error by horizon", "Coverage by horizon"]
CLASSES = ["Confusion", "Calibration", "Accuracy by stream"]
HOSTILE = "$\\frac$</td><script>alert(1)</script>\"'& \x00\n\u202e\ud800 温度"


def manifest_of(targets: int = 2, horizon: int = 12, labels: int = 3) -> Manifest:
    """Return a manifest with one channel for each target, one at least."""
    bundle = make_bundle(channels=max(1, targets), targets=targets, horizon=horizon, labels=labels)
    return replace(bundle.manifest, period_s=10.0)


def errors(table: F64) -> ErrorScores:
    """Return errors with this (D, H) mean absolute error."""
    mean = float(np.mean(table))
    return ErrorScores(mae=table.tolist(), rmse=(1.2 * table).tolist(), mse_scaled=mean * mean, mae_scaled=mean)


def forecast_scores(targets: int = 2, horizon: int = 12) -> ForecastScores:
    """Return scores of a model that is better than both baselines."""
    steps = np.arange(1, horizon + 1)
    model = np.outer(1 + np.arange(targets), 0.1 + 0.2 * np.sqrt(steps))
    coverage = np.clip(0.92 - 0.004 * np.outer(1 + np.arange(targets), steps), 0, 1)
    return ForecastScores(
        targets=[f"c{i}" for i in reversed(range(targets))],
        units=["bar"] + ["°C"] * (targets - 1),
        samples=1234,
        model=errors(model),
        baselines={"persistence": errors(1.8 * model), "linear_ar": errors(1.1 * model + 0.05)},
        skill={"persistence": 0.4, "linear_ar": 0.1},
        level=0.9,
        coverage=coverage.tolist(),
        mean_width=(3 * model).tolist(),
    )


def some_classes(labels: int = 3, streams: int = 4) -> ClassScores:
    """Return scores of a classifier that is right four times in five."""
    rng = np.random.default_rng(5)
    truth = rng.integers(0, labels, 600)
    given = np.where(rng.random(600) < 0.8, truth, rng.integers(0, labels, 600))
    confidence = rng.uniform(0.7, 1.0, 600)
    table = np.full((600, labels), 0.0) + ((1 - confidence) / max(1, labels - 1))[:, None]
    table[np.arange(600), given] = confidence
    names = [f"pump-{i}" for i in range(streams)]
    scores = class_scores([f"label {i}" for i in range(labels)], truth, table, names, np.arange(600) % streams, 0)
    assert scores is not None
    return scores


def streamed_of(manifest: Manifest, lengths: tuple[int, ...] = (700, 500)) -> StreamedRecording:
    """Return recordings of these lengths, one for each stream, with forecasts that are nearly right."""
    total, head = sum(lengths), manifest.forecast
    targets, horizon = (0, 0) if head is None else (len(head.targets), head.horizon)
    group = np.repeat(np.arange(len(lengths)), lengths)
    start = np.cumsum([0, *lengths])[:-1]
    when = np.arange(total) - start[group] if total else np.zeros(0, np.int64)
    rng = np.random.default_rng(7)
    phase = np.arange(len(manifest.channels))
    x = np.sin(when[:, None] / 40 + phase) * (1 + when[:, None] / 500) + 0.05 * rng.standard_normal((total, len(phase)))
    truth = np.full((total, targets, horizon), np.nan)
    for h in range(1, min(horizon, total - 1) + 1):
        same = group[h:] == group[:-h]
        truth[:-h, :, h - 1][same] = x[h:, manifest.target_index][same]
    forecast = truth + 0.07 * np.sqrt(np.arange(1, horizon + 1)) * rng.standard_normal(truth.shape)
    forecast[when < 5] = np.nan
    band = 0.1 + 0.02 * np.arange(1, horizon + 1)
    zeros = np.zeros(total, np.uint8)
    stream = group.astype(np.int32)
    time_ns = START_NS + when * 10 * NS_PER_S
    spec = OutputSpec("m")
    out = PredictionBatch(
        spec,
        tuple(f"pump-{i}" for i in range(len(lengths))),
        stream,
        time_ns,
        zeros,
        zeros,
        when + 1,
        zeros.astype(np.int32),
    )
    slots = np.arange(len(lengths))
    observed = np.ones(x.shape, np.bool_)
    steps = Steps(
        slots, start, np.array(lengths, np.int64), group, x.astype(np.float32), time_ns, np.arange(total), zeros,
        observed, when + 1, {}, [], 0,
    )  # fmt: skip
    return StreamedRecording(steps, out, forecast, forecast - band, forecast + band, truth, group.astype(np.int64) + 1)


def history_of(epochs: int = 30) -> list[dict[str, float]]:
    """Return the history of two heads; the validation loss is lowest in epoch 27."""
    rows = []
    for epoch in range(1, epochs + 1):
        row: dict[str, float] = {"epoch": epoch, "learning_rate": 1e-3, "seconds": 1.0}
        for name, size in (("loss", 3.0), ("loss_forecast", 1.0), ("loss_classes", 2.0)):
            row[name] = size * (0.05 + np.exp(-epoch / 6))
            row[f"val_{name}"] = size * (0.08 + np.exp(-epoch / 6) + 0.0001 * (epoch - 18) ** 2)
        rows.append(row | {"accuracy": 1 - 0.5 * np.exp(-epoch / 6), "val_accuracy": 0.9 - 0.4 * np.exp(-epoch / 6)})
    return rows


def scores_of(forecast: ForecastScores | None, classes: ClassScores | None) -> Scores:
    """Return scores with some drops and resets."""
    dropped, resets = {"late": 3, "out_of_range": 4}, {"first_sample": 2, "gap": 1}
    verdict = ["forecast: better than persistence by 40.0%"] if forecast else []
    return Scores(
        streams=2, applied=1200, dropped=dropped, resets=resets, forecast=forecast, classes=classes, verdict=verdict
    )


class Page(HTMLParser):
    """Heads, alternative texts, captions and attributes of a page, and whether its tags are balanced."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.heads: list[str] = []
        self.images: list[dict[str, str]] = []
        self.captions = 0
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page.decode())
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the tag and its addresses."""
        self.tags.add(tag)
        if tag not in ("meta", "img", "!doctype"):
            self.open.append(tag)
        found = {name: value or "" for name, value in attrs}
        self.addresses += [found[name] for name in ("src", "href", "action") if name in found]
        self.captions += tag == "figcaption"
        if tag == "img":
            self.images.append(found)

    def handle_endtag(self, tag: str) -> None:
        """Close the open tag."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect text, and headings of sections separately."""
        if self.open and self.open[-1] != "style":
            self.text += data
        if self.open and self.open[-1] == "h2":
            self.heads.append(data)

    @property
    def drawings(self) -> list[str]:
        """The SVG documents of the page."""
        prefix = "data:image/svg+xml;base64,"
        return [base64.b64decode(image["src"].removeprefix(prefix)).decode() for image in self.images]


def sample_page() -> bytes:
    """Return the report of a model with two heads."""
    manifest = manifest_of()
    return render_report(manifest, scores_of(forecast_scores(), some_classes()), streamed_of(manifest), history_of())


@pytest.fixture(scope="module")
def page() -> bytes:
    """The report of a model with two heads, rendered once."""
    return sample_page()


def test_two_heads_have_all_sections(page: bytes) -> None:
    """A model with both heads has every section, and each figure an alternative text and a caption."""
    found = Page(page)
    assert found.heads == ["Scores", "Training", *FORECAST, *CLASSES]
    assert len(found.images) == found.captions == 1 + 2 + 1 + 1 + 1
    assert all(len(image["alt"]) > 20 for image in found.images)
    for words in (
        "test-0",
        "2024-01-01",
        "stateful",
        "every 10 s",
        "gru 8",
        "skill of this model",
        "out of range",
        "gap",
    ):
        assert words in found.text


def test_absent_heads_are_absent_sections() -> None:
    """Without a head its sections are absent; without a history the learning curves are."""
    for forecast, classes in ((True, False), (False, True), (False, False)):
        manifest = manifest_of(targets=2 if forecast else 0, labels=3 if classes else 0)
        scores = scores_of(forecast_scores() if forecast else None, some_classes() if classes else None)
        found = Page(render_report(manifest, scores, streamed_of(manifest), []))
        assert found.heads == ["Scores", *(FORECAST if forecast else []), *(CLASSES if classes else [])]
        assert ("nothing to score this model with" in found.text) == (not forecast and not classes)


def test_the_same_bytes_twice(page: bytes) -> None:
    """The same arguments give the same bytes."""
    assert sample_page() == page


def test_the_file_is_self_contained(page: bytes) -> None:
    """Figures are data URLs; there is no script and no address except XML namespaces."""
    found = Page(page)
    assert not found.tags & {"script", "link", "iframe", "object", "a", "form"}
    assert all(address.startswith("data:image/svg+xml;base64,") for address in found.addresses)
    assert b"default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert b"://" not in page
    for drawing in found.drawings:
        assert "<script" not in drawing
        assert set(re.findall(r'(?:href="|url\()(.)', drawing)) <= {"#"}
        assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", drawing)


def test_the_file_is_small(page: bytes) -> None:
    """A common report is far below 2 MB, and so is one with many targets, horizons, labels and streams."""
    assert len(page) < 400_000
    manifest = manifest_of(targets=40, horizon=150, labels=120)
    scores = scores_of(forecast_scores(40, 150), some_classes(120, 300))
    huge = render_report(manifest, scores, streamed_of(manifest, (800,)), history_of(2000))
    assert len(huge) < 2_000_000
    assert "The first 8 of 40 targets." in Page(huge).text
    assert "The first 40 of 120 classes." in Page(huge).text


def test_many_classes_have_a_report_without_a_confusion_matrix() -> None:
    """Without a stored confusion matrix the page says so and omits columns that need it."""
    classes = some_classes(300)
    assert classes.confusion == []
    found = Page(render_report(manifest_of(labels=300), scores_of(None, classes), streamed_of(manifest_of()), []))
    assert set(CLASSES) <= set(found.heads)
    assert "Not stored for 300 classes" in found.text
    assert "The first 40 of 300 rows." in found.text
    assert "predicted instead" not in found.text


def test_hostile_names_are_text() -> None:
    """Markup, formulas, control characters and invalid characters in names stay text, in the page and the figures."""
    manifest = manifest_of(targets=1, horizon=3)
    channel = Channel(name=HOSTILE, unit=HOSTILE, seen_min=0.0, seen_max=1.0)
    manifest = replace(
        manifest,
        model_id=HOSTILE,
        created=HOSTILE,
        channels=[channel],
        forecast=Forecast(targets=[HOSTILE], horizon=3, residual=True),
        classes=Classes(labels=[HOSTILE, "b", "c"], activation="softmax"),
    )
    bad = replace(forecast_scores(1, 3), targets=[HOSTILE], units=[HOSTILE])
    bad = replace(bad, baselines={HOSTILE: bad.model}, skill={HOSTILE: -0.1})
    classes = replace(some_classes(), labels=[HOSTILE, "b", "c"], accuracy_by_stream={HOSTILE: 0.5, "x" * 10_000: 0.1})
    scores = replace(scores_of(bad, classes), verdict=[HOSTILE], dropped={HOSTILE: 1}, resets={HOSTILE: 1})
    streamed = streamed_of(manifest)
    streamed = StreamedRecording(**{**vars(streamed), "out": named(streamed.out, (HOSTILE, HOSTILE))})
    page = render_report(manifest, scores, streamed, history_of())
    found = Page(page)
    assert "script" not in found.tags
    assert "<script>alert(1)</script>" in found.text
    assert all(f"</td>{tail}" not in page.decode() for tail in ("<script", "&lt;script"))
    for drawing in found.drawings:
        assert ET.fromstring(drawing).tag.endswith("svg")  # noqa: S314 - our own drawing
        assert "<script" not in drawing


def named(out: PredictionBatch, streams: tuple[str, ...]) -> PredictionBatch:
    """Return the outputs under other names of streams."""
    return PredictionBatch(
        out.spec, streams, out.stream_index, out.time_ns, out.status, out.reset, out.steps_since_reset, out.imputed
    )


def test_missing_numbers_are_dashes() -> None:
    """Without a measurement the report has a dash, and empty figures are omitted."""
    manifest, scores = manifest_of(), forecast_scores()
    nothing = np.full((2, 12), np.nan)
    scores = replace(
        scores,
        model=errors(nothing),
        baselines={"persistence": errors(nothing)},
        skill={"persistence": float("nan")},
        coverage=nothing.tolist(),
        mean_width=nothing.tolist(),
    )
    nan = float("nan")
    classes = replace(
        some_classes(), recall=[nan] * 3, reliability=[], accuracy_by_stream={}, confusion=[[0] * 3] * 3, macro_f1=nan
    )
    streamed = streamed_of(manifest)
    streamed = StreamedRecording(**{**vars(streamed), "forecast": streamed.forecast * np.nan})
    found = Page(render_report(manifest, scores_of(scores, classes), streamed, [{"epoch": 1.0, "loss": nan}]))
    assert found.heads == ["Scores", "Error by horizon", "Confusion"]
    assert "–" in found.text
    assert "nan" not in found.text


@pytest.mark.parametrize(("lengths", "horizon"), [((), 1), ((1,), 12), ((3, 2), 1), ((9,), 12), ((14,), 1)])
def test_short_recordings(lengths: tuple[int, ...], horizon: int) -> None:
    """However short the recordings are, and with a single horizon and a single class, there is a report."""
    manifest = manifest_of(targets=1, horizon=horizon, labels=1)
    scores = scores_of(forecast_scores(1, horizon), some_classes(1, 1))
    found = Page(render_report(manifest, scores, streamed_of(manifest, lengths), history_of(1)))
    assert (FORECAST[0] in found.heads) == (max(lengths, default=0) > 6)
    assert {"Error by horizon", "Coverage by horizon", *CLASSES} <= set(found.heads)


def test_an_excerpt_has_movement_and_no_reset() -> None:
    """The excerpt is of one stream, moves more than most, and has each forecast at the time it predicts."""
    manifest = manifest_of(targets=1)
    streamed = streamed_of(manifest, (150, 3000))
    excerpt = find_excerpt(manifest, forecast_scores(1), streamed, 0)
    assert excerpt is not None
    assert excerpt.stream == "pump-1"
    assert set(np.diff(excerpt.time_ns).tolist()) == {10 * NS_PER_S}
    assert np.std(excerpt.truth) > np.std(streamed.steps.x[150:, 0])
    assert [name for name, _ in excerpt.forecasts] == ["10 s (step 1)", "2 min (step 12)"]
    for _, table in excerpt.forecasts:
        assert np.nanmean(np.abs(table[0] - excerpt.truth)) < 0.25
    assert len(excerpt.truth) == 200


def test_each_head_is_assessed() -> None:
    """Each head is assessed as good or bad, by its worst comparison."""
    good = assess(scores_of(forecast_scores(), some_classes()))
    assert [fine for fine, _ in good] == [True, True, True, True]
    forecast = replace(forecast_scores(), skill={"persistence": 0.3, "linear_ar": -0.2}, coverage=[[0.6]])
    classes = replace(some_classes(), majority_accuracy=0.99, expected_calibration_error=0.3)
    bad = assess(scores_of(forecast, classes))
    assert [fine for fine, _ in bad] == [False] * 4
    assert "linear ar" in bad[0][1]
    assert "too narrow" in bad[1][1]
    assert assess(scores_of(None, None)) == []


def test_the_best_position_is_that_of_the_lowest_validation_loss() -> None:
    """Epochs without a finite loss are never the best; without validation the training loss decides."""
    assert best_position([]) is None
    assert best_position([{"epoch": 1.0, "loss": float("nan")}]) is None
    assert best_position([{"epoch": 1.0, "loss": 1.0}, {"epoch": 2.0, "loss": 0.5}]) == 2
    rows = [{"epoch": 1.0, "loss": 9.0, "val_loss": 0.1}, {"epoch": 2.0, "loss": 1.0, "val_loss": float("nan")}]
    assert best_position(rows) == 1


def test_intervals_that_are_no_epochs_are_drawn_over_updates() -> None:
    """When the history counts updates, they are the axis and name the best position."""
    rows = [{"epoch": 0.1 * i, "updates": 100.0 * i, "loss": 1 / i, "val_loss": abs(i - 3.0)} for i in range(1, 6)]
    with figure_style():
        figure = draw_learning(rows)
    assert best_position(rows) == 300
    assert figure is not None
    assert "the weights after 300 updates were kept" in figure.alt
    assert b">update<" in figure.svg
    assert b">kept (update 300)<" in figure.svg


def test_durations_and_names() -> None:
    """Durations are in the largest fitting unit; names are one line of printable characters."""
    assert [duration(s) for s in (0.001, 1, 90, 3600, 86_400)] == ["1 ms", "1 s", "1.5 min", "1 h", "1 d"]
    assert printable("a\nb\x00\ud800") == "a\N{REPLACEMENT CHARACTER}b" + "\N{REPLACEMENT CHARACTER}" * 2
    assert len(printable("x" * 100)) == 60


def test_the_kept_weights_are_marked() -> None:
    """When the last weights are kept, the mark is there, not at the lowest loss."""
    rows = [{"epoch": float(i), "loss": 1.0, "val_loss": float(i)} for i in range(1, 4)]
    with figure_style():
        best, last = draw_learning(rows), draw_learning(rows, 3)
    assert best is not None
    assert last is not None
    assert "epoch 1 were kept" in best.alt
    assert "epoch 3 were kept" in last.alt
