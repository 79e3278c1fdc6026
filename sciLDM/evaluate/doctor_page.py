"""A diagnosis for people: rows for the terminal, and one HTML page."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sciLDM import __version__
from sciLDM.errors import MissingExtra
from sciLDM.evaluate import html
from sciLDM.evaluate.doctor import Diagnosis
from sciLDM.evaluate.doctor_run import Row
from sciLDM.evaluate.doctor_study import TOLERANCE
from sciLDM.evaluate.figures import INK, PALETTE, panels, svg
from sciLDM.evaluate.hooks import Section

__all__ = ["guidance_table", "solver_table", "temperature_table", "write_page"]

_SOLVER = (
    "How the sampler changes Gaussian latents, exactly, at temperature 1 and without guidance. Spread is the square "
    "root of generated over true total variance. The grid's end is what the last estimate takes of it whatever the "
    "number of steps; the solver is the rest. Narrowest and widest are the extreme ratios of standard deviations over "
    "principal directions. Beyond 1/99 % is the share outside the true 1 % and 99 % quantiles: 2 % when right."
)
_GUIDANCE = (
    "One condition is asked to be one standard deviation above its mean, in a linear Gaussian model of latents and "
    "condition. Shift is how far the mean moves in the condition's direction: 1 is as asked for, more is overshoot. "
    "Spread is relative to the true conditional distribution. At temperature 1."
)
_MARKS = {"problem": "problem", "note": "note", "good": "fine"}


def solver_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of `solver_rows` with percentages and a verdict."""
    return [
        {
            "steps": r["steps"],
            "spread": f"{r['spread'] - 1:+.2%}",
            "grid's end": f"{r['end'] - 1:+.2%}",
            "solver": f"{r['solver'] - 1:+.2%}",
            "narrowest": f"{r['narrowest'] - 1:+.1%}",
            "widest": f"{r['widest'] - 1:+.1%}",
            "mean off [std]": f"{r['mean']:.2%}",
            "beyond 1/99 %": f"{r['tails']:.2%}",
            "verdict": _verdict(r),
        }
        for r in rows
    ]


def temperature_table(rows: Sequence[Row], chosen: float) -> list[dict[str, Any]]:
    """Spread by temperature, the model's own marked."""
    return [
        {
            "temperature": r["temperature"],
            "spread": f"{r['spread'] - 1:+.1%}",
            "": "the model's own" if r["temperature"] == chosen else "",
        }
        for r in rows
    ]


def guidance_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows on guidance with percentages."""
    return [
        {
            "condition": r["condition"],
            "guidance": r["guidance"],
            "shift (1: as asked)": round(r["shift"], 3),
            "spread along it": f"{r['along'] - 1:+.1%}",
            "spread overall": f"{r['spread'] - 1:+.1%}",
            "variance explained": f"{r['explained']:.1%}",
        }
        for r in rows
    ]


def write_page(found: Diagnosis, path: Path) -> Path:
    """One self-contained HTML file."""
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    subtitle = f"Examined by sciLDM {__version__} on {made}"
    title = f"scildm doctor: {found.name}"
    text = html.page(title, subtitle, html.facts(found.sampler), list(_sections(found)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _sections(found: Diagnosis) -> Sequence[Section]:
    parts = [Section("Verdict", _verdict_list(found))]
    if found.solver:
        body = html.paragraph(_SOLVER, kind="soft") + _figure(found) + _table(solver_table(found.solver))
        if found.extended:
            end = found.extended[0]["lmbda"]
            body += f"<h3>The same, with the grid continued to lmbda {html.number(end)}</h3>"
            body += _table(solver_table(found.extended))
        parts.append(Section("Steps", body))
        chosen = float(found.sampler["temperature"])
        text = "Temperature multiplies every standard deviation; at the model's own number of steps:"
        body = html.paragraph(text, kind="soft") + _table(temperature_table(found.temperature, chosen))
        parts.append(Section("Temperature", body))
        text = _GUIDANCE if found.guidance else "No labels came with the latents: not examined."
        parts.append(
            Section("Guidance", html.paragraph(text, kind="soft") + _table(guidance_table(found.guidance)))
        )
        parts.append(Section("Latents", html.paragraph(str(found.source)) + html.facts(found.latents)))
    if found.gate:
        parts.append(Section("Reconstruction gate", _table(found.gate)))
    if found.calibration:
        parts.append(Section("Calibration of error bars", _table(found.calibration)))
    if any(v is not None for v in found.loader.values()):
        parts.append(Section("Loader", html.facts(found.loader)))
    return parts


def _verdict_list(found: Diagnosis) -> str:
    rows: list[Mapping[str, Any]] = [{"": _MARKS[f.kind], "what": f.text} for f in found.findings]
    source = f"Latents: {found.source}." if found.source else "No latents were examined."
    return html.paragraph(source) + html.table(rows, ("", "what"))


def _verdict(row: Row) -> str:
    if abs(row["spread"] - 1) <= TOLERANCE:
        return "within 2 %"
    cause = "solver" if abs(row["solver"] - 1) >= abs(row["end"] - 1) else "grid's end"
    return f"too {'narrow' if row['spread'] < 1 else 'wide'}: {cause}"


def _table(rows: Sequence[Row]) -> str:
    return html.table(rows, list(rows[0])) if rows else ""


def _figure(found: Diagnosis) -> str:
    """Spread by steps; left out where matplotlib is absent, since the table says the same."""
    try:
        figure, axes = panels(1, width=5.4, height=2.8)
    except MissingExtra:
        return ""
    ax = axes[0]
    at = [r["steps"] for r in found.solver]
    ax.axhspan(1 - TOLERANCE, 1 + TOLERANCE, color=PALETTE[2], alpha=0.15, linewidth=0, label="within 2 %")
    ax.fill_between(
        at, [r["narrowest"] for r in found.solver], [r["widest"] for r in found.solver], color=PALETTE[0],
        alpha=0.15, linewidth=0, label="directions",
    )  # fmt: skip
    ax.plot(at, [r["spread"] for r in found.solver], "o-", color=PALETTE[0], markersize=4, label="spread")
    if found.extended:
        spread = [r["spread"] for r in found.extended]
        ax.plot(at, spread, "s--", color=PALETTE[1], markersize=3.5, label="spread, longer grid")
    ax.axvline(found.sampler["steps"], color=INK, linewidth=1.0, linestyle=":", label="the model's own")
    ax.set_xscale("log")
    ax.set_xticks(at, [str(n) for n in at])
    ax.minorticks_off()
    ax.set_xlabel("steps")
    ax.set_ylabel("generated / true std")
    ax.legend(fontsize=7.5, frameon=False, labelcolor=INK)
    return svg(figure, "Spread of generated latents relative to the true one, by number of steps")
