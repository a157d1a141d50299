"""The report in the bundle: one HTML file without scripts or external files, rendered from ``report.html.jinja``.

The same arguments give the same bytes.  Names are untrusted text: they are made printable, cut and escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise

import numpy as np
from jinja2 import Environment, StrictUndefined

from stream_gru.core.types import F64, I64, Mask
from stream_gru.model.manifest import Manifest, weight_shapes
from stream_gru.training import figures
from stream_gru.training.evaluation.evaluate import StreamedRecording
from stream_gru.training.evaluation.scores import ClassScores, ForecastScores, Scores
from stream_gru.training.figures import MAX_TARGETS, Excerpt, SvgFigure, coverage_by_horizon, display_name, printable

_TEMPLATE = "report.html.jinja"
_MAX_ROWS = 40
_MAX_STREAMS = 20
_MIN_LABELS = 20  # per stream, for an accuracy by stream
_MAX_COUNTED_CLASSES = 7
_SHADE = "background:rgba(0,114,178,{:.3f})"
_BAR = "width:22rem;background:linear-gradient(90deg,#0072b2 {0:.1%},transparent {0:.1%})"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text and a CSS style."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row is its heading."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page: notes, tables and figures; without any it is omitted."""

    title: str
    blocks: Sequence[str | Table | SvgFigure]


def render_report(
    manifest: Manifest, scores: Scores, streamed: StreamedRecording, history: list[dict[str, float]], kept: int = 0
) -> bytes:
    """Render the report of a model (UTF-8 HTML): assessment, scores and figures.

    ``scores, streamed``: the test recordings, evaluated; ``history``: one row per validation, see
    `stream_gru.training.fit.FitResult`; ``kept``: the validation, from 1, whose weights were kept, 0 for the best.
    A head that the model does not have, or that could not be scored, has no section.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"printable": printable, "data_url": _data_url}
    template = environment.from_string((resources.files(__package__) / _TEMPLATE).read_text("utf-8"))
    none = (False, "The test recordings contain nothing to score this model with.")
    with figures.figure_style():
        sections = [*_sections(manifest, scores, streamed, history, kept)]
    page = template.render(
        model_id=manifest.model_id,
        facts=_facts(manifest),
        assessment=assess(scores) or [none],
        verdict=scores.verdict,
        sections=sections,
        max_rows=_MAX_ROWS,
    )
    return page.encode()


def assess(scores: Scores) -> list[tuple[bool, str]]:
    """Assess forecasts, intervals, classes and confidences in one sentence each: (good, sentence)."""
    found = []
    if scores.forecast is not None and scores.forecast.skill:
        name, skill = min(scores.forecast.skill.items(), key=lambda item: (item[1], item[0]))
        worse = f"The forecasts are no better than the baseline {display_name(name)}."
        found.append((skill > 0.005, "The forecasts are better than every baseline." if skill > 0.005 else worse))
    if scores.forecast is not None and np.isfinite(coverage := coverage_by_horizon(scores.forecast)).any():
        off = float(np.nanmean(coverage)) - scores.forecast.level
        word = "about right" if abs(off) <= 0.05 else "too narrow" if off < 0 else "too wide"
        found.append((abs(off) <= 0.05, f"The width of the intervals is {word}."))
    if scores.classes is not None:
        good = scores.classes.accuracy > scores.classes.majority_accuracy + 0.005
        word = "better" if good else "no better"
        found.append((good, f"The classes are {word} than always predicting the most frequent one."))
        error = scores.classes.expected_calibration_error
        word = "calibrated" if error <= 0.1 else "not calibrated"
        found.append((error <= 0.1, f"The confidences are {word} ({error:.1%} off on average)."))
    return found


def _facts(manifest: Manifest) -> str:
    regime = manifest.regime if manifest.window is None else f"{manifest.regime}, window {manifest.window}"
    layers = ", ".join(f"{layer.cell} {layer.units}" for layer in manifest.layers)
    shapes = weight_shapes(manifest)
    numbers = sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.startswith("scaling/"))
    return (
        f"Created {manifest.created} · regime {regime} · one sample every {duration(manifest.period_s)}"
        f" · layers {layers or 'none'} · {numbers:,} parameters"
    )


def _sections(
    manifest: Manifest, scores: Scores, streamed: StreamedRecording, history: list[dict[str, float]], kept: int
) -> Iterator[Section]:
    yield Section("Scores", [*_score_tables(manifest, scores)])
    yield Section("Training", _present(figures.draw_learning(history, kept)))
    if scores.forecast is not None:
        yield from _forecast_sections(manifest, scores.forecast, streamed)
    if scores.classes is not None:
        yield from _class_sections(scores.classes)


def _present(figure: SvgFigure | None) -> list[SvgFigure]:
    return [] if figure is None else [figure]


def _score_tables(manifest: Manifest, scores: Scores) -> Iterator[Table]:
    if scores.forecast is not None:
        yield from _forecast_tables(scores.forecast, manifest.period_s)
    if scores.classes is not None:
        yield _class_table(scores.classes)
    rows = [["streams", f"{scores.streams:,}"], ["samples applied", f"{scores.applied:,}"]]
    for title, counts in (("dropped", scores.dropped), ("resets", scores.resets)):
        rows.append([title, f"{sum(counts.values()):,}"])
        rows += [[f"{title}: {name.replace('_', ' ')}", f"{n:,}"] for name, n in sorted(counts.items())]
    yield Table("The test recordings, streamed through the model.", ["", "count"], [*map(_plain, rows)])


def _plain(texts: Sequence[str]) -> list[Cell]:
    return [Cell(text) for text in texts]


def _forecast_tables(scores: ForecastScores, period_s: float) -> Iterator[Table]:
    tables = {"model": scores.model, **scores.baselines}
    rows = []
    for name, table in tables.items():
        skill = "" if name == "model" else _percent(scores.skill.get(name, np.nan))
        rows.append(_plain([display_name(name), _number(table.mae_scaled), _number(table.mse_scaled), skill]))
    caption = (
        f"All targets and horizons of {scores.samples:,} samples, in standard deviations of the training part. Skill is"
        " the reduction of the error by this model; below 0 the baseline is better."
    )
    yield Table(caption, ["forecaster", "MAE (scaled)", "MSE (scaled)", "skill of this model"], rows)
    coverage, rows = coverage_by_horizon(scores), []
    horizon = coverage.shape[1]
    for d, target in enumerate(scores.targets):
        for h in sorted({0, (horizon - 1) // 2, horizon - 1}):
            errors = [table.mae[d][h] for table in tables.values()]
            best = min((e for e in errors if np.isfinite(e)), default=np.nan)
            cells = [Cell(_number(e), "font-weight:700" if e == best else "") for e in errors]
            name = f"{printable(target)} [{scores.units[d]}]" if scores.units[d] else target
            ahead = f"{duration((h + 1) * period_s)} (step {h + 1})"
            ends = [Cell(_percent(coverage[d, h])), Cell(_number(scores.mean_width[d][h]))]
            rows.append([Cell(name), Cell(ahead), *cells, *ends])
    caption = f"Mean absolute error in the target's unit, lowest in bold, and the {scores.level:.0%} intervals."
    yield Table(caption, ["target", "ahead", *map(display_name, tables), "coverage", "interval width"], rows)


def _class_table(scores: ClassScores) -> Table:
    columns = ["class", "rows", "recall"]
    rows = []
    for label, count, recall in zip(scores.labels, scores.label_rows, scores.recall, strict=True):
        rows.append([label, f"{count:,}", _percent(recall)])
    if scores.confusion:
        columns.append("most often predicted instead")
        for index, row in enumerate(rows):
            others = np.array(scores.confusion[index])
            others[index] = 0
            row.append(printable(scores.labels[int(others.argmax())]) if others.any() else "–")
    caption = (
        f"{_percent(scores.accuracy)} of {scores.samples:,} labelled rows are correct; always predicting the most"
        f" frequent training class gives {_percent(scores.majority_accuracy)}; macro F1 {_number(scores.macro_f1)}."
    )
    return Table(caption, columns, [*map(_plain, rows)])


def _forecast_sections(manifest: Manifest, scores: ForecastScores, streamed: StreamedRecording) -> Iterator[Section]:
    step = duration(manifest.period_s)
    shown = min(len(scores.targets), MAX_TARGETS)
    notes = [f"The first {shown} of {len(scores.targets)} targets."] if len(scores.targets) > shown else []
    excerpts = (find_excerpt(manifest, scores, streamed, d) for d in range(shown))
    drawn = [figures.draw_forecasts(excerpt) for excerpt in excerpts if excerpt is not None]
    yield Section("Forecasts and truth", [*notes, *drawn] if drawn else [])
    yield Section("Error by horizon", [*notes, figures.draw_errors(scores, step)])
    yield Section("Coverage by horizon", _present(figures.draw_coverage(scores, step)))


def _class_sections(scores: ClassScores) -> Iterator[Section]:
    yield Section("Confusion", [_confusion(scores)])
    yield Section("Calibration", _present(figures.draw_calibration(scores)))
    accuracy = sorted((value, name) for name, value in scores.accuracy_by_stream.items() if np.isfinite(value))
    if not accuracy or scores.samples < _MIN_LABELS * len(accuracy):
        return
    rows = [[Cell(name), Cell(_percent(value)), Cell("", _BAR.format(value))] for value, name in accuracy]
    caption = "Accuracy of labelled rows; check the recordings of a stream far below the others."
    if len(rows) > _MAX_STREAMS:
        caption += f" The lowest {_MAX_STREAMS} of {len(rows)} streams."
    yield Section("Accuracy by stream", [Table(caption, ["stream", "accuracy", ""], rows[:_MAX_STREAMS])])


def _confusion(scores: ClassScores) -> Table | str:
    if not scores.confusion:
        return f"Not stored for {len(scores.labels):,} classes."
    shown = scores.labels[:_MAX_ROWS]
    counted = len(shown) <= _MAX_COUNTED_CLASSES
    rows = []
    for label, counts in zip(shown, scores.confusion, strict=False):
        shares = [count / max(sum(counts), 1) for count in counts]
        texts = [f"{n:,} · {s:.0%}" if counted else f"{s:.0%}" for n, s in zip(counts, shares, strict=True)]
        cells = [Cell(text, _SHADE.format(0.75 * s)) for text, s in zip(texts, shares, strict=True)]
        rows.append([Cell(label), *cells[: len(shown)]])
    values = "Count and percentage" if counted else "Percentage"
    caption = f"{values} of each true class (row) by predicted class (column): the diagonal is correct."
    caption += f" The first {len(shown)} of {len(scores.labels)} classes." if len(scores.labels) > len(shown) else ""
    return Table(caption, ["true class", *(printable(label, 24) for label in shown)], rows)


def _data_url(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _number(value: float, form: str = ".4g") -> str:
    return f"{value:{form}}" if np.isfinite(value) else "–"


def _percent(value: float) -> str:
    return _number(value, ".1%")


def find_excerpt(
    manifest: Manifest, scores: ForecastScores, streamed: StreamedRecording, target: int
) -> Excerpt | None:
    """Return the excerpt to draw for one target; None when no forecast has a truth.

    Pieces without a reset and with most forecasts are ranked by the variance of their truth; the piece at the 90th
    percentile is taken: it has movement, but is not the most extreme one.
    """
    steps, horizon, column = streamed.steps, streamed.truth.shape[2], manifest.target_index[target]
    truth = np.where(steps.observed[:, column], steps.x[:, column], np.nan).astype(np.float64)
    tables = {h: _forecasts_at_target_time(streamed, target, h) for h in sorted({1, horizon})}
    usable = {h: np.isfinite(truth) & np.isfinite(table[0]) for h, table in tables.items()}
    usable = {h: mask for h, mask in usable.items() if mask.any()}
    if not usable:
        return None
    length = min(max(200, 4 * horizon), 400)
    piece = _moving_piece(truth, np.logical_and.reduce(list(usable.values())), streamed.segment, length)
    return Excerpt(
        target=scores.targets[target],
        unit=scores.units[target],
        stream=_stream_name(streamed, piece),
        time_ns=steps.time_ns[piece],
        truth=truth[piece],
        forecasts=[(f"{duration(h * manifest.period_s)} (step {h})", tables[h][:, piece]) for h in usable],
        level=scores.level,
    )


def _forecasts_at_target_time(streamed: StreamedRecording, d: int, h: int) -> F64:
    """(3, T): forecast, lower and upper bound made ``h`` steps earlier in the same segment, NaN elsewhere."""
    moved = np.full((3, len(streamed.segment)), np.nan)
    if h < moved.shape[1]:
        same = streamed.segment[h:] == streamed.segment[:-h]
        for row, table in zip(moved, (streamed.forecast, streamed.lower, streamed.upper), strict=True):
            row[h:][same] = table[:-h, d, h - 1][same]
    return moved


def _moving_piece(truth: F64, usable: Mask, segment: I64, length: int) -> slice:
    edges = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
    every = max(1, length // 4)
    pieces = [
        (start, min(start + length, end))
        for begin, end in pairwise(edges)
        for start in range(begin, max(begin, end - length) + 1, every)
    ]
    first, last = np.array(pieces, np.int64).T
    level = truth - np.nanmean(truth)
    sums = [np.cumsum(np.append(0.0, np.where(usable, part, 0.0))) for part in (np.ones_like(level), level, level**2)]
    count, total, squares = (part[last] - part[first] for part in sums)
    full = np.flatnonzero(count >= max(1.0, 0.8 * count.max()))
    if not len(full):  # no step has all the horizons
        return slice(*pieces[0])
    variance = squares[full] / count[full] - (total[full] / count[full]) ** 2
    ranked = full[np.argsort(variance, kind="stable")]
    return slice(*pieces[ranked[round(0.9 * (len(ranked) - 1))]])


def _stream_name(streamed: StreamedRecording, piece: slice) -> str:
    rows = streamed.steps.row
    real = rows[rows >= 0]
    inside = rows[piece][rows[piece] >= 0]
    if not len(inside) or len(real) != len(streamed.out):
        return "unknown"
    return streamed.out.stream_names[int(streamed.out.stream_index[int((real < inside[0]).sum())])]


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that gives at least 1, e.g. ``1.5 min``."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1000:.4g} ms"
