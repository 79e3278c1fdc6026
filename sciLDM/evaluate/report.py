"""One HTML file about a run: what was made, how good it is, how it was trained, and what to be careful about."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from sciLDM import __version__
from sciLDM.evaluate import html
from sciLDM.evaluate.curves import training_sections
from sciLDM.evaluate.hooks import Section
from sciLDM.evaluate.store import Stored, commands

__all__ = ["write_report"]

_METRICS = {
    "metric": "metric",
    "value": "value",
    "floor": "floor",
    "samples": "samples",
    "note": "what it is",
}
_CONDITIONAL = {
    "property": "property",
    "mae": "mean abs. error",
    "mae_unconditional": "unconditional",
    "ratio": "ratio",
    "spearman": "rank correlation",
    "validity": "validity",
    "uniqueness": "uniqueness",
    "samples": "samples",
}


def write_report(
    run: Path,
    *,
    card: Mapping[str, Any] | None = None,
    gate: Mapping[str, float] | None = None,
    sections: Sequence[Section] = (),
    name: str | None = None,
) -> Path:
    """Write `report.html` into a run folder; what is missing there is left out.

    Args:
        run: The run folder.
        card: The model's card; None while there is no finished model.
        gate: Least held-out reconstruction scores, for the autoencoder's figure.
        sections: The domain's own.
        name: Name of the model; the folder's when None.

    Returns:
        The file.
    """
    card = card or {}
    evaluation = Stored(run).read()
    summary = _summary(run, card)
    config = _config(run)
    parts = [
        *_notes(evaluation, finished=bool(card)),
        *[s for s in sections if s.place == "opening"],
        *_metrics(evaluation),
        *_conditional(evaluation),
        *[s for s in sections if s.place == "results"],
        *_gate(summary, gate or {}),
        *training_sections(run, gate or {}),
        *[s for s in sections if s.place == "data"],
        *_provenance(run, card, summary),
        *_configuration(config),
    ]
    title = name or run.resolve().name
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    subtitle = f"Latent diffusion model, reported by sciLDM {__version__} on {made}"
    text = html.page(title, subtitle, html.facts(_head(run, card, summary, config)), parts)
    path = run / "report.html"
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _head(
    run: Path, card: Mapping[str, Any], summary: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, Any]:
    data = summary.get("data", {})
    sizes = data.get("sizes", {})
    stages = [summary.get(stage, {}) for stage in ("autoencoder", "denoiser")]
    seconds = sum(s.get("seconds") or 0.0 for s in stages)
    done = commands(run)
    peaks = [summary.get("peak_memory_gib"), *[c.get("peak_memory_gib") for c in done]]
    peak = max((p for p in peaks if p), default=None)
    where = done[-1].get("machine", {}) if done else {}
    total = sum(c.get("seconds") or 0.0 for c in done)
    hardware = [where.get("processor"), f"{where.get('cores')} cores" if where.get("cores") else None]
    hardware += [
        f"{where['memory [GiB]']:.0f} GiB" if where.get("memory [GiB]") else None,
        where.get("accelerator"),
    ]
    domain = config.get("domain", {})
    return {
        "data": ", ".join(
            [str(data.get("name", "")), *[f"{n:,} {split}" for split, n in sizes.items()]]
        ).strip(", "),
        "domain": card.get("domain") or (domain.get("class_path") if isinstance(domain, Mapping) else domain),
        "trained": _date(card.get("created")) or "not finished",
        "training time": " + ".join(
            f"{html.duration(s['seconds'])} {name}"
            for name, s in zip(("autoencoder", "denoiser"), stages, strict=True)
            if s.get("seconds")
        )
        if seconds
        else None,
        "total time": f"{html.duration(total)}, data preparation and evaluation included" if total else None,
        "peak memory": f"{peak:.2f} GiB" if peak else None,
        "hardware": ", ".join(str(h) for h in hardware if h) or None,
    }


def _notes(evaluation: Mapping[str, Any], *, finished: bool) -> list[Section]:
    """What a strict reader must see, before any number."""
    notes = []
    if not finished:
        notes.append("Training has not finished: there is no model yet.")
    parts = [evaluation.get("unconditional"), evaluation.get("conditional")]
    if finished and not any(parts):
        notes.append("Nothing was evaluated yet: run “scildm evaluate” on this run, then report again.")
    for part in parts:
        notes += (part or {}).get("failures", [])
    if not notes:
        return []
    items = "".join(f"<li>{html.escape(note)}</li>" for note in dict.fromkeys(notes))
    return [Section("Read this first", f'<ul class="notes">{items}</ul>')]


def _metrics(evaluation: Mapping[str, Any]) -> list[Section]:
    part = evaluation.get("unconditional")
    if not part:
        return []
    text = html.paragraph(
        "The floor is the same score for an equally large random sample of real training data: no model can be "
        "expected to beat it, and a distance is never zero.",
        kind="soft",
    )
    settings = {**part.get("sampling", {}), **part.get("protocol", {}), "evaluated": part.get("created")}
    return [
        Section(
            "Metrics",
            text + html.table(part["rows"], _METRICS) + html.details("Protocol", html.facts(settings)),
        )
    ]


def _conditional(evaluation: Mapping[str, Any]) -> list[Section]:
    part = evaluation.get("conditional")
    if not part:
        return []
    text = html.paragraph(
        "Samples are asked for targets spread between the 5th and 95th percentile of the training data, one property "
        "at a time. “Unconditional” is the error of samples that were asked for nothing, against the same targets; "
        "a ratio of 1 means that asking has no effect, 0 that every request is met exactly.",
        kind="soft",
    )
    rows = html.table(part["rows"], _CONDITIONAL)
    targets = [
        {"property": r.get("property"), "targets": ", ".join(html.number(t) for t in r.get("targets") or [])}
        for r in part["rows"]
    ]
    body = html.facts({**part.get("sampling", {}), "evaluated": part.get("created")})
    more = html.details("Targets and settings", html.table(targets, ("property", "targets")) + body)
    return [Section("Asked for and got", text + rows + more)]


def _gate(summary: Mapping[str, Any], gate: Mapping[str, float]) -> list[Section]:
    stage = summary.get("autoencoder")
    if not stage:
        return []
    validation, test = stage.get("validation", {}), stage.get("test", {})
    names = [n for n in dict.fromkeys([*gate, *test]) if n != "samples" and not n.startswith("loss")]
    rows = [
        {
            "score": name.replace("_", " "),
            "validation": validation.get(name),
            "test": test.get(name),
            "gate": gate.get(name),
            "passed": None if name not in gate or name not in validation else validation[name] >= gate[name],
        }
        for name in names
    ]
    text = html.paragraph(
        f"Noise-free round trip of held-out data ({html.number(test.get('samples'))} test samples) through encoder and "
        "decoder. The denoiser is trained only if the gate is passed, or when told to go on regardless.",
        kind="soft",
    )
    return [
        Section(
            "Reconstruction gate", text + html.table(rows, ("score", "validation", "test", "gate", "passed"))
        )
    ]


def _provenance(run: Path, card: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Section]:
    done = commands(run)
    rows = [
        {
            "command": c.get("command"),
            "ended": c.get("ended"),
            "time": html.duration(float(c.get("seconds") or 0.0)),
            "peak memory [GiB]": c.get("peak_memory_gib"),
            "sciLDM": c.get("sciLDM"),
        }
        for c in done
    ]
    body = html.table(rows, list(rows[0])) if rows else ""
    if done:
        body += html.facts(done[-1].get("machine", {}))
    if card:
        weights = card.get("files", {}).get("model.safetensors", {})
        entries = {
            "model saved": card.get("created"),
            "sciLDM": card.get("sciLDM") or __version__,
            "weights": f"{weights.get('bytes', 0) / 1e6:.1f} MB, sha256 {weights.get('sha256', '')}"
            if weights
            else None,
            "libraries": ", ".join(f"{k} {v}" for k, v in card.get("libraries", {}).items() if v),
            "data fingerprint": summary.get("data", {}).get("fingerprint"),
        }
        body += html.facts(entries)
    return [Section("Where it comes from", body)] if body else []


def _configuration(config: Mapping[str, Any]) -> list[Section]:
    if not config:
        return []
    text = yaml.safe_dump(dict(config), sort_keys=False)
    body = html.details("Show the complete configuration", f"<pre>{html.escape(text)}</pre>")
    return [Section("Configuration", body)]


def _date(text: Any) -> str:
    try:
        return datetime.fromisoformat(str(text)).strftime("%d %B %Y, %H:%M %Z").strip()
    except ValueError:
        return ""


def _config(run: Path) -> dict[str, Any]:
    for path in (run / "config.yaml", run / "model" / "config.yaml"):
        if path.exists():
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return content if isinstance(content, dict) else {}
    return {}


def _summary(run: Path, card: Mapping[str, Any]) -> dict[str, Any]:
    path = run / "summary.json"
    if path.exists():
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return dict(card.get("training", {}))
