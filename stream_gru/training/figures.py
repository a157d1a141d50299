"""The pictures of the report: learning curves, forecasts beside the truth, errors, coverage, confidence.

Every picture is an SVG of its own that goes into the page as an image: names of channels, labels and streams are text
in it and can never become markup of the page.  Colours are Okabe and Ito's, a forecaster keeps its colour, dash and
marker in all pictures.  Source: M. Okabe, K. Ito, "Color universal design", 2008.

Decision: letters stay text in the SVG instead of outlines, so that names in any script are readable although the font
that measures them here may not know it.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from matplotlib import dates, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter

from stream_gru.core.types import F64
from stream_gru.training.evaluation.scores import ClassScores, ForecastScores

MOST_TARGETS = 8
_MOST_HORIZONS = 200

BLACK, BLUE, GREY = "#000000", "#0072B2", "#6B6B6B"
GREEN, VERMILION, PURPLE, ORANGE, SKY = "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9"
_FORECASTERS = {
    "model": (BLUE, "-", "o"),
    "persistence": (ORANGE, "--", "s"),
    "seasonal_naive": (GREEN, "-.", "^"),
    "linear_ar": (VERMILION, ":", "D"),
}
_OTHERS = [(PURPLE, "-", "v"), (SKY, "--", "P"), (BLACK, "-.", "X"), (GREY, ":", "p")]
_TARGETS = [*_OTHERS, ("#4B3B8F", "-", "o"), ("#7F4F24", "--", "s"), (PURPLE, "-.", "^"), (SKY, ":", "D")]
_LOOK: dict[str, object] = {
    "svg.hashsalt": "stream-gru",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar in a name is a dollar
    "font.family": ["sans-serif"],
    "figure.constrained_layout.use": True,
}
_LOOK |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left"}
_LOOK |= {"axes.grid": True, "axes.axisbelow": True, "grid.color": "#E6E6E6", "legend.frameon": False}
_LOOK |= {"axes.formatter.useoffset": False, "axes.formatter.limits": (-4, 6)}
_WIDTH = 9.0
_CURVES = ["loss", "loss_forecast", "loss_classes", "accuracy"]


@dataclass(frozen=True, slots=True)
class Picture:
    """An SVG document; ``alt`` says what is to be seen, ``caption`` how to read it (both plain text)."""

    svg: bytes
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Extract:
    """A piece of one recorded stream: S steps of one target, forecasts laid at the time they are about.

    ``time_ns, truth``: (S,); ``ahead``: name of each shown horizon and its (3, S) forecast, lower and upper bound.
    """

    target: str
    unit: str
    stream: str
    time_ns: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    truth: F64
    ahead: list[tuple[str, F64]]
    level: float


def clean(name: str, most: int = 60) -> str:
    """Return a name on one line, without control characters, of at most ``most`` characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


def spoken(name: str) -> str:
    """Return a forecaster's name as words, ``this model`` for the model."""
    return "this model" if name == "model" else clean(name.replace("_", " "), 24)


@contextmanager
def drawing() -> Iterator[None]:
    """Within it, pictures look the same whatever the user has set for matplotlib."""
    with style.context(["default", _LOOK]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts decide, not this machine's
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def draw_learning(history: Sequence[dict[str, float]], kept: int | None = None) -> Picture | None:
    """Loss by epoch, or by updates where rounds are not passes, then that of each head if there are two.

    Training and validation; ``kept``: the round, from 1, whose weights were kept, None for the best.  None without a
    round.
    """
    names = [n for n in _CURVES if any(np.isfinite(row.get(n, np.nan)) for row in history)]
    names = (
        names if len(names) == len(_CURVES) else [n for n in names if "_" not in n]
    )  # one head: its loss is the loss
    if not names:
        return None
    unit = "update" if any("updates" in row for row in history) else "epoch"
    best = best_round(history) if kept is None else _place(history, kept - 1)
    figure = Figure(figsize=(_WIDTH, 3.0))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        _draw_rounds(panel, history, name, unit, best)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    caption = (
        "Both lines should fall and then level out; where validation rises while training still falls, the model has"
        " begun to learn its training part by heart; the weights of the marked place are kept."
    )
    alt = f"Loss of each of {len(history)} epochs; epoch {best} was kept."
    if unit == "update":
        alt = f"Loss at each of {len(history)} looks at the validation part; that after {best} updates was kept."
    return Picture(_svg(figure), alt, caption)


def best_round(history: Sequence[dict[str, float]]) -> int | None:
    """Return where the validation loss was lowest, or the loss without validation.

    That is the number of updates till then, or of the epoch (from 1) where rounds are passes.
    """
    losses = np.array([row.get("val_loss", row.get("loss", np.nan)) for row in history], np.float64)
    if not np.isfinite(losses).any():
        return None
    return _place(history, int(np.argmin(np.where(np.isfinite(losses), losses, np.inf))))


def _place(history: Sequence[dict[str, float]], index: int) -> int:
    return int(history[index].get("updates", history[index].get("epoch", index + 1)))


def _draw_rounds(panel: Axes, history: Sequence[dict[str, float]], name: str, unit: str, best: int | None) -> None:
    key = "updates" if unit == "update" else unit
    places = [row.get(key, index + 1) for index, row in enumerate(history)]
    shown = []
    for key, label, colour, dash in ((name, "training", GREY, "--"), (f"val_{name}", "validation", BLUE, "-")):
        values = _finite([row.get(key, np.nan) for row in history])
        if np.isfinite(values).any():
            marker = "o" if len(places) <= 40 else ""
            panel.plot(places, values, dash, color=colour, label=label, marker=marker, markersize=3)
            shown.append(values[np.isfinite(values)])
    if best is not None:
        panel.axvline(best, color=VERMILION, linewidth=1, linestyle=":", label=f"kept ({unit} {best})")
    panel.set(title=name.replace("_", " of "), xlabel=unit)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    values = np.concatenate(shown)
    if name != "accuracy" and 0 < 20 * values.min() < values.max():
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_formatter(NullFormatter())


def draw_forecasts(extract: Extract) -> Picture:
    """Truth, forecast and interval of one target over an extract; a panel for each shown horizon."""
    figure = Figure(figsize=(_WIDTH, 0.9 + 2.2 * len(extract.ahead)))
    panels = figure.subplots(len(extract.ahead), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, table) in zip(panels, extract.ahead, strict=True):
        _draw_ahead(panel, extract, table)
        panel.set_title(f"{clean(extract.target, 40)}, forecast {name} earlier")
        panel.set_ylabel(clean(extract.unit, 16))
    panels[-1].xaxis.set_major_locator(locator := dates.AutoDateLocator(tz="UTC", minticks=3, maxticks=8))
    panels[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz="UTC"))
    panels[-1].set_xlabel("time (UTC)")
    named = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=4)
    alt = f"{clean(extract.target)}: lines of truth and forecasts over {len(extract.truth)} steps."
    caption = "Each forecast stands at the time it is about: the closer blue is to black the better"
    if any(np.isfinite(table[1:]).any() for _, table in extract.ahead):
        caption += f", and about {1 - extract.level:.0%} of the truths may lie outside the band (marked)"
    caption += f"; the piece of stream {clean(extract.stream)} was chosen for its movement, not for its errors."
    return Picture(_svg(figure), alt, caption)


def _draw_ahead(panel: Axes, extract: Extract, table: F64) -> None:
    time = extract.time_ns.astype("datetime64[ns]").astype("datetime64[us]")
    forecast, low, high = _finite(table)
    truth = _finite(extract.truth)
    band = np.isfinite(low) & np.isfinite(high)
    marker = "." if len(truth) <= 60 else ""
    if band.any():
        panel.fill_between(time, low, high, band, color=BLUE, alpha=0.2, linewidth=0, label=f"{extract.level:.0%} band")
    panel.plot(time, truth, color=BLACK, linewidth=1.1, marker=marker, label="truth")
    panel.plot(time, forecast, color=BLUE, marker=marker, label="forecast")
    known = np.pad(np.isfinite(forecast), 1)
    alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a line needs two points: a model of windows answers at their end
    panel.plot(time[alone], forecast[alone], "o", color=BLUE, markersize=3)
    panel.vlines(time[alone & band], low[alone & band], high[alone & band], color=BLUE, alpha=0.4)
    outside = (truth < low) | (truth > high)
    if outside.any():
        panel.plot(time[outside], truth[outside], ".", color=VERMILION, markersize=7, label="truth outside the band")
    edges = [np.quantile(part[band], q) for part, q in ((low, 0.05), (high, 0.95)) if band.any()]
    seen = np.concatenate([truth, forecast, edges])
    if np.isfinite(seen).any():  # a few wild bounds shall not flatten everything else
        bottom, top = np.nanmin(seen), np.nanmax(seen)
        panel.set_ylim(bottom - (pad := 0.08 * (top - bottom) or 0.5), top + pad)


def draw_errors(scores: ForecastScores, step: str) -> Picture:
    """Mean absolute error by horizon of the model and each baseline, a panel for each target."""
    targets = scores.targets[:MOST_TARGETS]
    tables = {"model": scores.model, **scores.baselines}
    figure, panels = _grid(len(targets), 2.4 if len(scores.model.mae[0]) > 1 else 0.8 + 0.3 * len(tables))
    for index, (panel, target) in enumerate(zip(panels, targets, strict=False)):
        curves = [(spoken(name), np.array(table.mae[index]), look(name)) for name, table in tables.items()]
        _compare(panel, curves, step)
        panel.set_title(clean(f"{target} [{scores.units[index]}]" if scores.units[index] else target, 36))
    if len(scores.model.mae[0]) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    caption = "Lower is better: where this model (blue) is not the lowest, the simple method that is forecasts better."
    alt = f"Mean absolute error by horizon of {', '.join(spoken(n) for n in tables)} for {len(targets)} target(s)."
    return Picture(_svg(figure), alt, caption)


def covered(scores: ForecastScores) -> F64:
    """Return (D, H) shares of truths inside the interval, NaN where there is no interval."""
    return np.where(np.isfinite(scores.mean_width), _finite(scores.coverage), np.nan)


def draw_coverage(scores: ForecastScores, step: str) -> Picture | None:
    """Share of truths inside the interval by horizon, beside the level; None without intervals."""
    table = covered(scores)[:MOST_TARGETS]
    if not np.isfinite(table).any():
        return None
    names, single = [clean(target, 24) for target in scores.targets], table.shape[1] == 1
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.35 * len(table) if single else 3.2))
    panel = figure.subplots()
    _compare(panel, list(zip(names, table, _TARGETS, strict=False)), step)
    lowest = float(np.nanmin(table))
    limits = (0.0 if single else max(0.0, min(lowest, scores.level) - 0.08), 1.02)
    (panel.axvline if single else panel.axhline)(scores.level, color=BLACK, linestyle=(0, (6, 3)), linewidth=1.2)
    (panel.set_xlim if single else panel.set_ylim)(limits)
    (panel.xaxis if single else panel.yaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.set_title(f"truths inside the {scores.level:.0%} band (dashed: what is promised)")
    if not single:
        figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper")
    caption = "Near the dashed line the bands are honest, below it too narrow, above it wider than they need be."
    return Picture(_svg(figure), f"Coverage by horizon, from {lowest:.0%}, against {scores.level:.0%}.", caption)


def look(name: str) -> tuple[str, str, str]:
    """Return colour, dash and marker of a forecaster; an unknown one gets the same each time."""
    return _FORECASTERS.get(name) or _OTHERS[sum(map(ord, name)) % len(_OTHERS)]


def _compare(panel: Axes, curves: Sequence[tuple[str, F64, tuple[str, str, str]]], step: str) -> None:
    """Lines over the horizon, or bars where there is but one horizon."""
    if len(curves[0][1]) == 1:
        panel.barh(range(len(curves)), [_finite(c[1])[0] for c in curves], color=[c[2][0] for c in curves], height=0.6)
        panel.set_yticks(range(len(curves)), [c[0] for c in curves])
        panel.invert_yaxis()
        panel.grid(visible=False, axis="y")
        return
    for name, values, (colour, dash, marker) in curves:
        chosen = np.unique(np.linspace(0, len(values) - 1, _MOST_HORIZONS).astype(int))
        values = _finite(values)[chosen]
        every = max(1, len(chosen) // 10)
        panel.plot(chosen + 1, values, dash, color=colour, marker=marker, markevery=every, markersize=4, label=name)
    panel.set_xlabel(f"horizon (steps of {step})")
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = 2 if count in (2, 4) else min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(_WIDTH, 0.5 + height * rows))
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure, panels


def draw_calibration(scores: ClassScores) -> Picture | None:
    """Reliability diagram over a histogram of the confidences; None without rows."""
    bins = [row for row in scores.reliability if np.isfinite(row).all()]
    if not bins:
        return None
    figure = Figure(figsize=(5.4, 4.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    confidence, right, rows = np.array(bins, np.float64).T
    upper.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1, label="honest")
    upper.vlines(confidence, confidence, right, color=VERMILION, linewidth=2, label="difference")
    upper.plot(confidence, right, color=BLUE, marker="o", label="this model")
    upper.set(ylim=(0, 1.03), ylabel="share right")
    upper.legend(loc="upper left")
    centres = np.minimum(np.floor(confidence * 10), 9) / 10 + 0.05
    lower.bar(centres, rows / rows.sum(), width=0.09, color=BLUE)
    lower.set(xlim=(0, 1), xlabel="confidence of the answer", ylabel="share of rows")
    for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    caption = "On the dashed line a confidence of 80% is right in 80% of the cases, below it the model is too sure of"
    caption += " itself; the bars tell how often each confidence occurs."
    alt = f"Reliability diagram; mean difference of confidence and accuracy {scores.expected_calibration_error:.1%}."
    return Picture(_svg(figure), alt, caption)


def _finite(values: F64 | Sequence[float] | Sequence[Sequence[float]]) -> F64:
    table = np.asarray(values, np.float64)
    return np.where(np.isfinite(table), table, np.nan)


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return out.getvalue()[out.getvalue().index(b"<svg") :]  # without the document type, which names a web address
