"""Figures in one style, as inline SVG: text stays text, colours are CSS variables so that dark pages work too."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sciLDM.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:  # matplotlib is optional; annotations are read at run time under pytest
    Axes = Figure = Any

__all__ = ["GRID", "INK", "PALETTE", "bars", "histogram", "lines", "panels", "scatter", "svg"]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
"""Colours that people with colour-vision deficiency tell apart (Okabe & Ito 2008)."""

INK, GRID = "#1b1f24", "#dde1e6"
"""Text and axes; grid lines. Replaced by the page's own."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_LIGHT_GREY = "#9aa3ad"


def panels(
    count: int, *, width: float = 3.5, height: float = 2.6, columns: int = 3
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows of `columns` [inches each]; unused places stay empty.

    Raises:
        MissingExtra: matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure as NewFigure
    except ModuleNotFoundError as error:
        raise MissingExtra("figures need matplotlib: pip install matplotlib") from error
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = NewFigure(figsize=(width * columns, height * rows))
    figure.patch.set_alpha(0.0)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    axes = [figure.add_subplot(rows, columns, k + 1) for k in range(count)]
    for ax in axes:
        _dress(ax)
    return figure, axes


def _dress(ax: Axes) -> None:
    ax.patch.set_alpha(0.0)
    ax.grid(True, color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LIGHT_GREY)
    ax.tick_params(colors=INK, labelsize=8, length=3, color=_LIGHT_GREY)
    for text in (ax.xaxis.label, ax.yaxis.label, ax.title):
        text.set_color(INK)
        text.set_fontsize(9)


def lines(
    ax: Axes,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    log: bool = False,
) -> None:
    """Named curves with a legend; `log` for the y axis where all values are positive."""
    for k, (name, (at, values)) in enumerate(curves.items()):
        marker = "o" if len(at) < 40 and k else None
        ax.plot(
            at,
            values,
            color=PALETTE[k % len(PALETTE)],
            linewidth=1.6,
            label=name,
            marker=marker,
            markersize=3,
        )
    everything = (
        np.concatenate([np.asarray(v, dtype=float) for _, v in curves.values()]) if curves else np.ones(1)
    )
    if log and (everything > 0).all():
        ax.set_yscale("log")
        _plain_ticks(ax)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    _legend(ax)


def histogram(ax: Axes, sets: Mapping[str, np.ndarray], *, x: str, legend: bool = True) -> None:
    """Densities on common bins; the first set is filled. The outermost 0.5 % are left out of view."""
    known = {name: v[np.isfinite(v)] for name, v in sets.items()}
    known = {name: v for name, v in known.items() if len(v)}
    if not known:
        return
    low = min(float(np.quantile(v, 0.005)) for v in known.values())
    high = max(float(np.quantile(v, 0.995)) for v in known.values())
    bins = int(np.clip(1.5 * np.sqrt(min(len(v) for v in known.values())), 10, 40))
    whole = all((v == np.round(v)).all() for v in known.values()) and high - low < 60
    edges = (
        np.arange(round(low) - 0.5, round(high) + 1)
        if whole
        else np.linspace(low, max(high, low + 1e-9), bins + 1)
    )
    for k, (name, values) in enumerate(known.items()):
        inside = values[(values >= edges[0]) & (values <= edges[-1])]
        density, _ = np.histogram(inside, edges)
        density = density / (len(values) * np.diff(edges))
        colour = PALETTE[k % len(PALETTE)]
        ax.stairs(density, edges, color=colour, linewidth=1.5, label=name)
        if k == 0:
            ax.stairs(density, edges, color=colour, fill=True, alpha=0.25)
    ax.set_xlabel(x)
    ax.set_yticks([])
    if legend:
        _legend(ax)


def scatter(
    ax: Axes,
    requested: np.ndarray,
    realised: np.ndarray,
    *,
    name: str,
    unconditional: float | None,
    legend: bool = True,
) -> None:
    """Realised against requested: every sample, the median and central half at each target, and the line y = x."""
    good = np.isfinite(requested) & np.isfinite(realised)
    requested, realised = requested[good], realised[good]
    if len(requested) == 0:
        return
    targets = np.unique(requested)
    step = float(np.diff(targets).min()) if len(targets) > 1 else 1.0
    jitter = (np.arange(len(requested)) * 0.618034 % 1.0 - 0.5) * 0.45 * step
    ax.plot(
        requested + jitter,
        realised,
        ".",
        color=PALETTE[4],
        markersize=2.5,
        alpha=0.45,
        label="samples",
        zorder=1,
    )
    ends = [targets[0] - step / 2, targets[-1] + step / 2]
    ax.plot(ends, ends, color=INK, linewidth=1.0, linestyle="--", label="realised = requested", zorder=2)
    middle = [np.quantile(realised[requested == t], [0.25, 0.5, 0.75]) for t in targets]
    mid = np.stack(middle, axis=1)
    ax.errorbar(
        targets, mid[1], yerr=[mid[1] - mid[0], mid[2] - mid[1]], color=PALETTE[0], fmt="o", markersize=4,
        linewidth=1.6, label="median, central half", zorder=3,
    )  # fmt: skip
    if unconditional is not None:
        ax.axhline(
            unconditional,
            color=PALETTE[1],
            linewidth=1.0,
            linestyle=":",
            label="unconditional mean",
            zorder=2,
        )
    low, high = np.quantile(realised, [0.005, 0.995])
    low, high = min(low, ends[0]), max(high, ends[1])
    ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    ax.set_xlabel(f"requested {name}")
    ax.set_ylabel(f"realised {name}")
    if legend:
        _legend(ax)


def bars(ax: Axes, sets: Mapping[str, Mapping[int, float]], *, x: str, y: str) -> None:
    """Shares by whole number: the first set as filled bars, the others as outlines."""
    for k, (name, shares) in enumerate(sets.items()):
        at, colour = sorted(shares), PALETTE[k % len(PALETTE)]
        heights = [shares[i] for i in at]
        if k == 0:
            ax.bar(at, heights, width=0.8, color=colour, alpha=0.45, label=name)
        else:
            ax.bar(at, heights, width=0.8, fill=False, edgecolor=colour, linewidth=1.6, label=name)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    _legend(ax)


def _plain_ticks(ax: Axes) -> None:
    """`0.6` instead of `6 x 10^-1`; minor ticks are named only where the axis spans less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    text = FuncFormatter(lambda value, _at: f"{value:g}")
    ax.yaxis.set_major_formatter(text)
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 4, 6, 8) if high < 10 * low else (2, 5)))
    ax.yaxis.set_minor_formatter(text if high < 40 * low else NullFormatter())
    ax.tick_params(which="minor", colors=INK, labelsize=7, color=_LIGHT_GREY)


def _legend(ax: Axes) -> None:
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=7.5, frameon=False, labelcolor=INK)


def svg(figure: Figure, alt: str) -> str:
    """The figure as an `<svg>` element that follows the page's fonts and colours.

    Args:
        figure: From `panels`.
        alt: What it shows, for readers who do not see it; also keeps the element's ids apart from other figures'.
    """
    import matplotlib

    stream = io.StringIO()
    options: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": alt}
    with matplotlib.rc_context(options):
        figure.savefig(
            stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    for k, colour in enumerate(PALETTE):
        text = text.replace(colour, f"var(--c{k})")
    text = text.replace(INK, "var(--ink)").replace(GRID, "var(--grid)").replace(_LIGHT_GREY, "var(--axis)")
    text = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, text)
    text = re.sub(r"(<svg [^>]*?) width=\"[\d.]+pt\" height=\"[\d.]+pt\"", r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    width = int(figure.get_figwidth() * 96)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'<div class="figure" role="img" aria-label="{label}" style="max-width:{width}px">{text}</div>'
