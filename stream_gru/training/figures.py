"""The figures of the report: learning curves, forecasts and truth, errors, coverage, calibration.

Every figure is an SVG document embedded as an image: names of channels, labels and streams are text in it and cannot
become markup of the page.  Colours are those of Okabe and Ito; a forecaster has the same colour, dash and marker in all
figures.  Source: M. Okabe, K. Ito, "Color universal design", 2008.

Decision: text stays text in the SVG, not outlines, so that names in any script are readable even if the font used here
lacks it.
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

MAX_TARGETS = 8
_MAX_HORIZONS = 200

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
_STYLE: dict[str, object] = {
    "svg.hashsalt": "stream-gru",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a name is not a formula
    "font.family": ["sans-serif"],
    "figure.constrained_layout.use": True,
}
_STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10, "axes.titlelocation": "left"}
_STYLE |= {"axes.grid": True, "axes.axisbelow": True, "grid.color": "#E6E6E6", "legend.frameon": False}
_STYLE |= {"axes.formatter.useoffset": False, "axes.formatter.limits": (-4, 6)}
_WIDTH = 9.0
_CURVES = ["loss", "loss_forecast", "loss_classes", "accuracy"]


@dataclass(frozen=True, slots=True)
class SvgFigure:
    """An SVG document; ``alt`` describes it, ``caption`` explains how to read it (both plain text)."""

    svg: bytes
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Excerpt:
    """An excerpt of one recorded stream: S steps of one target, forecasts at the time they predict.

    ``time_ns, truth``: (S,); ``forecasts``: name of each horizon drawn and its (3, S) forecast, lower and upper bound.
    """

    target: str
    unit: str
    stream: str
    time_ns: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    truth: F64
    forecasts: list[tuple[str, F64]]
    level: float


def printable(name: str, most: int = 60) -> str:
    """Return a name on one line, without control characters, of at most ``most`` characters."""
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


def display_name(name: str) -> str:
    """Return a forecaster's name for display, ``this model`` for the model."""
    return "this model" if name == "model" else printable(name.replace("_", " "), 24)


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw figures in one style, independent of the user's matplotlib settings."""
    with style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the fonts of the reader's machine are used
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        yield


def draw_learning(history: Sequence[dict[str, float]], kept: int = 0) -> SvgFigure | None:
    """Training and validation loss by epoch, or by updates if intervals are not epochs; of each head if there are two.

    ``kept``: the validation, from 1, whose weights were kept, 0 for the best.  None without a finite loss.
    """
    names = [n for n in _CURVES if any(np.isfinite(row.get(n, np.nan)) for row in history)]
    names = (
        names if len(names) == len(_CURVES) else [n for n in names if "_" not in n]
    )  # one head: its loss is the loss
    if not names:
        return None
    unit = "update" if any("updates" in row for row in history) else "epoch"
    best = _position(history, kept - 1) if kept else best_position(history)
    figure = Figure(figsize=(_WIDTH, 3.0))
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        _draw_curve(panel, history, name, unit, best)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    caption = (
        "Both curves should fall and level out. A validation loss that rises while the training loss falls shows"
        " overfitting. The dotted line marks the weights that were kept."
    )
    alt = f"Loss of {len(history)} epochs; the weights of epoch {best} were kept."
    if unit == "update":
        alt = f"Loss of {len(history)} validations; the weights after {best} updates were kept."
    return SvgFigure(_svg(figure), alt, caption)


def best_position(history: Sequence[dict[str, float]]) -> int | None:
    """Return where the validation loss was lowest, or the training loss without validation; None without any.

    The position is the number of updates, or the epoch (from 1) when intervals are epochs.
    """
    losses = np.array([row.get("val_loss", row.get("loss", np.nan)) for row in history], np.float64)
    if not np.isfinite(losses).any():
        return None
    return _position(history, int(np.argmin(np.where(np.isfinite(losses), losses, np.inf))))


def _position(history: Sequence[dict[str, float]], index: int) -> int:
    return int(history[index].get("updates", history[index].get("epoch", index + 1)))


def _draw_curve(panel: Axes, history: Sequence[dict[str, float]], name: str, unit: str, best: int | None) -> None:
    key = "updates" if unit == "update" else unit
    positions = [row.get(key, index + 1) for index, row in enumerate(history)]
    shown = []
    for key, label, colour, dash in ((name, "training", GREY, "--"), (f"val_{name}", "validation", BLUE, "-")):
        values = _finite([row.get(key, np.nan) for row in history])
        if np.isfinite(values).any():
            marker = "o" if len(positions) <= 40 else ""
            panel.plot(positions, values, dash, color=colour, label=label, marker=marker, markersize=3)
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


def draw_forecasts(excerpt: Excerpt) -> SvgFigure:
    """Truth, forecast and interval of one target over an excerpt; one panel per horizon."""
    figure = Figure(figsize=(_WIDTH, 0.9 + 2.2 * len(excerpt.forecasts)))
    panels = figure.subplots(len(excerpt.forecasts), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (name, table) in zip(panels, excerpt.forecasts, strict=True):
        _draw_forecast(panel, excerpt, table)
        panel.set_title(f"{printable(excerpt.target, 40)}, forecast {name} ahead")
        panel.set_ylabel(printable(excerpt.unit, 16))
    panels[-1].xaxis.set_major_locator(locator := dates.AutoDateLocator(tz="UTC", minticks=3, maxticks=8))
    panels[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator, tz="UTC"))
    panels[-1].set_xlabel("time (UTC)")
    named = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=4)
    alt = f"{printable(excerpt.target)}: lines of truth and forecasts over {len(excerpt.truth)} steps."
    caption = "Forecasts are drawn at the time they predict: the closer blue is to black, the better"
    if any(np.isfinite(table[1:]).any() for _, table in excerpt.forecasts):
        caption += f"; about {1 - excerpt.level:.0%} of the truths may lie outside the interval (marked)"
    caption += (
        f". This excerpt of stream {printable(excerpt.stream)} was selected for its movement, not for its errors."
    )
    return SvgFigure(_svg(figure), alt, caption)


def _draw_forecast(panel: Axes, excerpt: Excerpt, table: F64) -> None:
    time = excerpt.time_ns.astype("datetime64[ns]").astype("datetime64[us]")
    forecast, low, high = _finite(table)
    truth = _finite(excerpt.truth)
    band = np.isfinite(low) & np.isfinite(high)
    marker = "." if len(truth) <= 60 else ""
    if band.any():
        panel.fill_between(
            time, low, high, band, color=BLUE, alpha=0.2, linewidth=0, label=f"{excerpt.level:.0%} interval"
        )
    panel.plot(time, truth, color=BLACK, linewidth=1.1, marker=marker, label="truth")
    panel.plot(time, forecast, color=BLUE, marker=marker, label="forecast")
    known = np.pad(np.isfinite(forecast), 1)
    alone = (
        known[1:-1] & ~known[:-2] & ~known[2:]
    )  # a line needs two points; models of windows predict at their end only
    panel.plot(time[alone], forecast[alone], "o", color=BLUE, markersize=3)
    panel.vlines(time[alone & band], low[alone & band], high[alone & band], color=BLUE, alpha=0.4)
    outside = (truth < low) | (truth > high)
    if outside.any():
        panel.plot(
            time[outside], truth[outside], ".", color=VERMILION, markersize=7, label="truth outside the interval"
        )
    edges = [np.quantile(part[band], q) for part, q in ((low, 0.05), (high, 0.95)) if band.any()]
    seen = np.concatenate([truth, forecast, edges])
    if np.isfinite(seen).any():  # ignore a few extreme bounds
        bottom, top = np.nanmin(seen), np.nanmax(seen)
        panel.set_ylim(bottom - (pad := 0.08 * (top - bottom) or 0.5), top + pad)


def draw_errors(scores: ForecastScores, step: str) -> SvgFigure:
    """Mean absolute error by horizon of the model and each baseline, one panel per target."""
    targets = scores.targets[:MAX_TARGETS]
    tables = {"model": scores.model, **scores.baselines}
    figure, panels = _grid(len(targets), 2.4 if len(scores.model.mae[0]) > 1 else 0.8 + 0.3 * len(tables))
    for index, (panel, target) in enumerate(zip(panels, targets, strict=False)):
        curves = [(display_name(name), np.array(table.mae[index]), line_style(name)) for name, table in tables.items()]
        _plot_by_horizon(panel, curves, step)
        panel.set_title(printable(f"{target} [{scores.units[index]}]" if scores.units[index] else target, 36))
    if len(scores.model.mae[0]) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4)
    caption = "Lower is better: where this model (blue) is not the lowest, a simple baseline forecasts better."
    alt = (
        f"Mean absolute error by horizon of {', '.join(display_name(n) for n in tables)} for {len(targets)} target(s)."
    )
    return SvgFigure(_svg(figure), alt, caption)


def coverage_by_horizon(scores: ForecastScores) -> F64:
    """Return the (D, H) share of truths inside the interval, NaN without interval."""
    return np.where(np.isfinite(scores.mean_width), _finite(scores.coverage), np.nan)


def draw_coverage(scores: ForecastScores, step: str) -> SvgFigure | None:
    """Share of truths inside the interval by horizon, beside the level; None without intervals."""
    table = coverage_by_horizon(scores)[:MAX_TARGETS]
    if not np.isfinite(table).any():
        return None
    names, single = [printable(target, 24) for target in scores.targets], table.shape[1] == 1
    figure = Figure(figsize=(_WIDTH, 0.9 + 0.35 * len(table) if single else 3.2))
    panel = figure.subplots()
    _plot_by_horizon(panel, list(zip(names, table, _TARGETS, strict=False)), step)
    lowest = float(np.nanmin(table))
    limits = (0.0 if single else max(0.0, min(lowest, scores.level) - 0.08), 1.02)
    (panel.axvline if single else panel.axhline)(scores.level, color=BLACK, linestyle=(0, (6, 3)), linewidth=1.2)
    (panel.set_xlim if single else panel.set_ylim)(limits)
    (panel.xaxis if single else panel.yaxis).set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.set_title(f"truths inside the {scores.level:.0%} interval (dashed: nominal)")
    if not single:
        figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper")
    caption = "Below the dashed line the intervals are too narrow, above it too wide."
    return SvgFigure(_svg(figure), f"Coverage by horizon, from {lowest:.0%}, against {scores.level:.0%}.", caption)


def line_style(name: str) -> tuple[str, str, str]:
    """Return colour, dash and marker of a forecaster; an unknown one always gets the same."""
    return _FORECASTERS.get(name) or _OTHERS[sum(map(ord, name)) % len(_OTHERS)]


def _plot_by_horizon(panel: Axes, curves: Sequence[tuple[str, F64, tuple[str, str, str]]], step: str) -> None:
    """Lines over the horizon, or bars when there is one horizon only."""
    if len(curves[0][1]) == 1:
        panel.barh(range(len(curves)), [_finite(c[1])[0] for c in curves], color=[c[2][0] for c in curves], height=0.6)
        panel.set_yticks(range(len(curves)), [c[0] for c in curves])
        panel.invert_yaxis()
        panel.grid(visible=False, axis="y")
        return
    for name, values, (colour, dash, marker) in curves:
        chosen = np.unique(np.linspace(0, len(values) - 1, _MAX_HORIZONS).astype(int))
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


def draw_calibration(scores: ClassScores) -> SvgFigure | None:
    """Reliability diagram over a histogram of the confidences; None without rows."""
    bins = [row for row in scores.reliability if np.isfinite(row).all()]
    if not bins:
        return None
    figure = Figure(figsize=(5.4, 4.8))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    confidence, accuracy, rows = np.array(bins, np.float64).T
    upper.plot([0, 1], [0, 1], color=BLACK, linestyle="--", linewidth=1, label="calibrated")
    upper.vlines(confidence, confidence, accuracy, color=VERMILION, linewidth=2, label="difference")
    upper.plot(confidence, accuracy, color=BLUE, marker="o", label="this model")
    upper.set(ylim=(0, 1.03), ylabel="accuracy")
    upper.legend(loc="upper left")
    centres = np.minimum(np.floor(confidence * 10), 9) / 10 + 0.05
    lower.bar(centres, rows / rows.sum(), width=0.09, color=BLUE)
    lower.set(xlim=(0, 1), xlabel="confidence", ylabel="share of rows")
    for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    caption = (
        "On the dashed line a confidence of 80% is correct in 80% of the cases; below it the model is overconfident."
    )
    caption += " The bars show how often each confidence occurs."
    alt = f"Reliability diagram; mean difference of confidence and accuracy {scores.expected_calibration_error:.1%}."
    return SvgFigure(_svg(figure), alt, caption)


def _finite(values: F64 | Sequence[float] | Sequence[Sequence[float]]) -> F64:
    table = np.asarray(values, np.float64)
    return np.where(np.isfinite(table), table, np.nan)


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return out.getvalue()[out.getvalue().index(b"<svg") :]  # without the document type, which contains a web address
