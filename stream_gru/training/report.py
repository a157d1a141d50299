"""The report that training writes into the bundle: one HTML file that needs no network, no scripts and no other file.

The same arguments give the same bytes.  Every name is hostile text: it is cleaned, cut and escaped.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from stream_gru.core.types import F64, I64, Mask
from stream_gru.model.manifest import Manifest, weight_shapes
from stream_gru.training import figures as pictures
from stream_gru.training.evaluation.evaluate import Streamed
from stream_gru.training.evaluation.scores import ClassScores, ForecastScores, Scores
from stream_gru.training.figures import MOST_TARGETS, Extract, Picture, clean, covered, spoken

_MOST_ROWS = 40
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CSS = """
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--soft:#59636e;--line:#d5dae0;--good:#00664b;--bad:#a33f00}
@media screen and (prefers-color-scheme:dark){
:root{--ink:#e6e9ed;--paper:#14181d;--soft:#a3adb8;--line:#39424c;--good:#4fd1a5;--bad:#ff9d5c}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:58rem;margin:auto;
padding:1rem}
h1{line-height:1.2;overflow-wrap:anywhere}h2{margin-top:2.5rem;border-bottom:1px solid var(--line)}
ul.verdict{list-style:none;padding:0;font-size:1.1rem}.good{color:var(--good)}.bad{color:var(--bad)}
.soft,figcaption,caption{color:var(--soft);font-size:.9rem}caption{text-align:left;padding-bottom:.3rem}
.wide{overflow-x:auto;margin:1.5rem 0}table{border-collapse:collapse;font-variant-numeric:tabular-nums;min-width:60%}
th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right;print-color-adjust:exact}
tbody th,thead th:first-child{text-align:left}tbody th,td{white-space:nowrap}thead th{vertical-align:bottom}
figure{margin:1.2rem 0;break-inside:avoid}figure img{display:block;max-width:100%;height:auto;background:#fff;
border-radius:6px;padding:.5rem;box-sizing:border-box}
@media print{body{max-width:none;font-size:10pt;padding:0}h2{break-after:avoid}tr{break-inside:avoid}}
"""
_MOST_STREAMS = 20
_FEW_LABELS = 20  # of one stream
_WIDE_CLASSES = 7
_SHADE = "background:rgba(0,114,178,{:.3f})"
_BAR = "width:22rem;background:linear-gradient(90deg,#0072b2 {0:.1%},transparent {0:.1%})"

Cell = str | tuple[str, str]  # text of a cell, or text and a style for it


def render_report(
    manifest: Manifest, scores: Scores, streamed: Streamed, history: list[dict[str, float]], kept: int | None = None
) -> bytes:
    """Return the report of a model: what it is worth, and the pictures to see why (UTF-8 HTML).

    ``scores, streamed``: the test recordings, evaluated; ``history``: one row a round, see
    `stream_gru.training.fit.Fitted`; ``kept``: the round, from 1, whose weights were kept, None for the best.  A head
    the model has not, or that could not be scored, has no section.
    """
    with pictures.drawing():
        parts = [
            _head(manifest, scores),
            _measured(manifest, scores),
            _section("Learning", [_figure(pictures.draw_learning(history, kept))]),
            "" if scores.forecast is None else _forecast_sections(manifest, scores.forecast, streamed),
            "" if scores.classes is None else _class_sections(scores.classes),
        ]
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    policy = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
    head = f"<head>{meta}{policy}<title>{_text(manifest.model_id)}: report</title><style>{_CSS}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body>{"".join(parts)}</body></html>\n'.encode()


def findings(scores: Scores) -> list[tuple[bool, str]]:
    """Judge in a sentence each: (good, what the forecasts, the intervals, the classes and confidences are worth)."""
    found = []
    if scores.forecast is not None and scores.forecast.skill:
        name, skill = min(scores.forecast.skill.items(), key=lambda item: (item[1], item[0]))
        worse = f"The forecasts are not better than {spoken(name)}, which is far simpler."
        found.append((skill > 0.005, "The forecasts are better than every baseline." if skill > 0.005 else worse))
    if scores.forecast is not None and np.isfinite(inside := covered(scores.forecast)).any():
        off = float(np.nanmean(inside)) - scores.forecast.level
        word = "about as wide as they must be" if abs(off) <= 0.05 else "too narrow" if off < 0 else "too wide"
        found.append((abs(off) <= 0.05, f"The intervals are {word}."))
    if scores.classes is not None:
        good = scores.classes.accuracy > scores.classes.majority_accuracy + 0.005
        word = "better" if good else "no better"
        found.append((good, f"The classes are {word} than always naming the commonest one."))
        error = scores.classes.expected_calibration_error
        word = "can" if error <= 0.1 else "cannot"
        found.append((error <= 0.1, f"The confidences {word} be taken at their word ({error:.1%} off on average)."))
    return found


def _head(manifest: Manifest, scores: Scores) -> str:
    regime = manifest.regime if manifest.window is None else f"{manifest.regime}, window {manifest.window}"
    layers = ", ".join(f"{layer.cell} {layer.units}" for layer in manifest.layers)
    shapes = weight_shapes(manifest)
    numbers = sum(int(np.prod(shape)) for name, shape in shapes.items() if not name.startswith("scaling/"))
    facts = f"Created {manifest.created} · regime {regime} · a sample every {duration(manifest.period_s)}"
    facts += f" · layers {layers or 'none'} · {numbers:,} parameters"
    found = findings(scores) or [(False, "The test recordings hold nothing this model could be scored by.")]
    marks = {True: '<li class="good">✓', False: '<li class="bad">✗'}
    lines = [f"{marks[good]} {_text(text, 300)}</li>" for good, text in found]
    said = "".join(f"<li>{_text(text, 300)}</li>" for text in scores.verdict)
    verdict = f'<ul class="verdict">{"".join(lines)}</ul>' + (f"<ul>{said}</ul>" if said else "")
    return f'<h1>{_text(manifest.model_id)}</h1><p class="soft">{_text(facts, 600)}</p>{verdict}'


def _measured(manifest: Manifest, scores: Scores) -> str:
    rows: list[list[Cell]] = [["streams", f"{scores.streams:,}"], ["samples applied", f"{scores.applied:,}"]]
    for title, counts in (("dropped", scores.dropped), ("resets", scores.resets)):
        rows.append([title, f"{sum(counts.values()):,}"])
        rows += [[f"{title}: {name.replace('_', ' ')}", f"{n:,}"] for name, n in sorted(counts.items())]
    parts = [] if scores.forecast is None else [*_forecast_tables(scores.forecast, manifest.period_s)]
    parts += [] if scores.classes is None else [_class_table(scores.classes)]
    parts.append(_table("The test recordings, streamed through the model.", ["", "count"], rows))
    return _section("Scores", parts)


def _forecast_tables(scores: ForecastScores, period_s: float) -> Iterable[str]:
    tables = {"model": scores.model, **scores.baselines}
    rows: list[list[Cell]] = []
    for name, table in tables.items():
        skill = "" if name == "model" else _percent(scores.skill.get(name, np.nan))
        rows.append([spoken(name), _number(table.mae_scaled), _number(table.mse_scaled), skill])
    caption = (
        f"All targets and horizons of {scores.samples:,} samples, in standard deviations of the training part; skill"
    )
    caption += " is the share of the error that this model takes away, below 0 it adds to it."
    yield _table(caption, ["forecaster", "MAE (scaled)", "MSE (scaled)", "this model's skill against it"], rows)
    inside, rows = covered(scores), []
    horizon = inside.shape[1]
    for d, target in enumerate(scores.targets):
        for h in sorted({0, (horizon - 1) // 2, horizon - 1}):
            errors = [table.mae[d][h] for table in tables.values()]
            best = min((e for e in errors if np.isfinite(e)), default=np.nan)
            cells = [(_number(e), "font-weight:700" if e == best else "") for e in errors]
            name = f"{clean(target)} [{scores.units[d]}]" if scores.units[d] else target
            ahead = f"{duration((h + 1) * period_s)} (step {h + 1})"
            rows.append([name, ahead, *cells, _percent(inside[d, h]), _number(scores.mean_width[d][h])])
    caption = f"Mean absolute error in the target's unit, the lowest in bold, and the {scores.level:.0%} bands."
    yield _table(caption, ["target", "ahead", *map(spoken, tables), "inside the band", "band width"], rows)


def _class_table(scores: ClassScores) -> str:
    names = ["class", "rows", "recall"]
    rows: list[list[Cell]] = []
    for label, count, recall in zip(scores.labels, scores.label_rows, scores.recall, strict=True):
        rows.append([label, f"{count:,}", _percent(recall)])
    if scores.confusion:
        names.append("most often mistaken for")
        for index, row in enumerate(rows):
            others = np.array(scores.confusion[index])
            others[index] = 0
            row.append(clean(scores.labels[int(others.argmax())]) if others.any() else "–")
    right, commonest = _percent(scores.accuracy), _percent(scores.majority_accuracy)
    caption = (
        f"Of {scores.samples:,} labelled rows {right} were right, always the class commonest in training: {commonest}"
    )
    caption += f"; macro F1 {_number(scores.macro_f1)}."
    return _table(caption, names, rows)


def _forecast_sections(manifest: Manifest, scores: ForecastScores, streamed: Streamed) -> str:
    step = duration(manifest.period_s)
    shown = min(len(scores.targets), MOST_TARGETS)
    left = len(scores.targets) - shown
    note = f'<p class="soft">The first {shown} targets are drawn, {left} left out.</p>' if left else ""
    extracts = (find_extract(manifest, scores, streamed, d) for d in range(shown))
    drawn = [_figure(pictures.draw_forecasts(extract)) for extract in extracts if extract is not None]
    return (
        _section("Forecasts beside the truth", [note, *drawn] if drawn else [])
        + _section("Error by horizon", [note, _figure(pictures.draw_errors(scores, step))])
        + _section("Coverage by horizon", [_figure(pictures.draw_coverage(scores, step))])
    )


def _class_sections(scores: ClassScores) -> str:
    right = sorted((value, name) for name, value in scores.accuracy_by_stream.items() if np.isfinite(value))
    if scores.samples < _FEW_LABELS * len(right):
        right = []  # a handful of answers says nothing about a stream
    rows: list[list[Cell]] = [
        [name, _percent(value), ("", _BAR.format(value))] for value, name in right[:_MOST_STREAMS]
    ]
    caption = "Share of labelled rows that were right; look first at the recordings of a stream far below the others."
    if len(right) > len(rows):
        caption += f" The lowest {len(rows)} of {len(right)} streams."
    return (
        _section("Confusion", [_confusion(scores)])
        + _section("Calibration", [_figure(pictures.draw_calibration(scores))])
        + _section("Accuracy by stream", [_table(caption, ["stream", "right", ""], rows)] if rows else [])
    )


def _confusion(scores: ClassScores) -> str:
    if not scores.confusion:
        return f'<p class="soft">Not kept for {len(scores.labels):,} classes: too large to be read.</p>'
    shown = scores.labels[:_MOST_ROWS]
    wide = len(shown) > _WIDE_CLASSES  # counts stand in the table of scores
    rows: list[list[Cell]] = []
    for label, counts in zip(shown, scores.confusion, strict=False):
        shares = [count / max(sum(counts), 1) for count in counts]
        texts = [f"{s:.0%}" if wide else f"{n:,} · {s:.0%}" for n, s in zip(counts, shares, strict=True)]
        cells = [(text, _SHADE.format(0.75 * s)) for text, s in zip(texts, shares, strict=True)]
        rows.append([label, *cells[: len(shown)]])
    caption = "How often each true class (row) was given each answer, and percent of the row: the diagonal is right."
    if wide:
        caption = "Percent of each true class (row) that was given each answer: the diagonal is right."
    caption += f" The first {len(shown)} of {len(scores.labels)} classes." if len(scores.labels) > len(shown) else ""
    return _table(caption, ["true class", *(clean(label, 24) for label in shown)], rows)


def find_extract(manifest: Manifest, scores: ForecastScores, streamed: Streamed, d: int) -> Extract | None:
    """Return the piece of the recording that is drawn for target ``d``; None where no forecast meets a truth.

    Pieces without a reset and with most forecasts are ranked by the spread of their truth; the one nine tenths up is
    taken, so that something happens in it, but not the strangest thing that ever did.
    """
    steps, horizon, column = streamed.steps, streamed.truth.shape[2], manifest.target_index[d]
    truth = np.where(steps.observed[:, column], steps.x[:, column], np.nan).astype(np.float64)
    tables = {h: _ahead(streamed, d, h) for h in sorted({1, horizon})}
    usable = {h: np.isfinite(truth) & np.isfinite(table[0]) for h, table in tables.items()}
    usable = {h: mask for h, mask in usable.items() if mask.any()}
    if not usable:
        return None
    length = min(max(200, 4 * horizon), 400)
    piece = _lively(truth, np.logical_and.reduce(list(usable.values())), streamed.stretch, length)
    return Extract(
        target=scores.targets[d],
        unit=scores.units[d],
        stream=_stream_name(streamed, piece),
        time_ns=steps.time_ns[piece],
        truth=truth[piece],
        ahead=[(f"{duration(h * manifest.period_s)} (step {h})", tables[h][:, piece]) for h in usable],
        level=scores.level,
    )


def _ahead(streamed: Streamed, d: int, h: int) -> F64:
    """(3, T): forecast, lower and upper bound made ``h`` steps earlier in the same stretch, NaN elsewhere."""
    moved = np.full((3, len(streamed.stretch)), np.nan)
    if h < moved.shape[1]:
        same = streamed.stretch[h:] == streamed.stretch[:-h]
        for row, table in zip(moved, (streamed.forecast, streamed.lower, streamed.upper), strict=True):
            row[h:][same] = table[:-h, d, h - 1][same]
    return moved


def _lively(truth: F64, usable: Mask, stretch: I64, length: int) -> slice:
    edges = [0, *(np.flatnonzero(np.diff(stretch)) + 1).tolist(), len(stretch)]
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
    spread = squares[full] / count[full] - (total[full] / count[full]) ** 2
    ranked = full[np.argsort(spread, kind="stable")]
    return slice(*pieces[ranked[round(0.9 * (len(ranked) - 1))]])


def _stream_name(streamed: Streamed, piece: slice) -> str:
    rows = streamed.steps.row
    real = rows[rows >= 0]
    mine = rows[piece][rows[piece] >= 0]
    if not len(mine) or len(real) != len(streamed.out):
        return "unknown"
    return streamed.out.stream_names[int(streamed.out.stream_index[int((real < mine[0]).sum())])]


def duration(seconds: float) -> str:
    """Return a length of time in the largest unit that leaves at least 1, e.g. ``1.5 min``."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1000:.4g} ms"


def _section(title: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    return f"<section><h2>{_text(title)}</h2>{body}</section>\n" if body else ""


def _figure(picture: Picture | None) -> str:
    if picture is None:
        return ""
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"
    image = f'<img alt="{_text(picture.alt, 500)}" src="{source}">'
    return f"<figure>{image}<figcaption>{_text(picture.caption, 500)}</figcaption></figure>"


def _table(caption: str, names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table of at most `_MOST_ROWS` rows; the first cell of a row is its head."""
    note = f" The first {_MOST_ROWS} of {len(rows)} rows." if len(rows) > _MOST_ROWS else ""
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(_cell(c, i == 0) for i, c in enumerate(row))}</tr>" for row in rows[:_MOST_ROWS])
    top = f"<caption>{_text(caption, 500)}{note}</caption><thead><tr>{head}</tr></thead>"
    return f'<div class="wide"><table>{top}<tbody>{body}</tbody></table></div>'


def _cell(cell: Cell, head: bool) -> str:
    text, look = (cell, "") if isinstance(cell, str) else cell
    return f'<th scope="row">{_text(text)}</th>' if head else f'<td style="{look}">{_text(text)}</td>'


def _text(text: str, most: int = 80) -> str:
    return html.escape(clean(text, most))


def _number(value: float, form: str = ".4g") -> str:
    return f"{value:{form}}" if np.isfinite(value) else "–"


def _percent(value: float) -> str:
    return _number(value, ".1%")
