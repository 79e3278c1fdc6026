"""What several commands do with a model: open it, read conditions and guidance, draw samples under a bar."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sciLDM.cli._console import Bars, note
from sciLDM.cli._near import near
from sciLDM.cli._parser import UsageError
from sciLDM.errors import ConfigError

__all__ = [
    "Model",
    "draw",
    "open_model",
    "parse_cond",
    "parse_guidance",
    "results_folder",
    "use_threads",
    "weights_hash",
]


@runtime_checkable
class Model(Protocol):
    """What the commands need of `sciLDM.model.LatentDiffusion`."""

    codec: Any
    experiment: Any
    card: dict[str, Any]
    reference: Path | None
    sample: Any


def use_threads(count: int | None) -> None:
    """Set torch's threads, if asked to."""
    if count is not None:
        import torch

        torch.set_num_threads(count)


def open_model(args: argparse.Namespace) -> Model:
    """Load the model on the device asked for.

    Raises:
        ConfigError: No such device.
        ArtefactError: No such model.
    """
    import torch

    from sciLDM.model import load

    use_threads(args.threads)
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(args.run)
    try:
        return model.to(name, dtype=torch.bfloat16 if args.bf16 else None)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {name}: expected a device of this machine, got {reason}; try --device cpu"
        ) from error


def results_folder(run: str, output: str | None) -> Path:
    """Where results belong: the run folder, or `runs/<name>` for a shipped model."""
    if output:
        return Path(output)
    path = Path(run)
    if path.name == "model" and (path / "card.json").exists():
        return path.parent
    return path if path.is_dir() else Path("runs") / path.name


def weights_hash(model: Model) -> str:
    """Tells one set of weights from another."""
    return str(model.card.get("files", {}).get("model.safetensors", {}).get("sha256", ""))


def parse_cond(entries: Sequence[str], model: Model) -> dict[str, Any]:
    """`["logP=2.5", "QED=0.5.."]` as `{"logP": 2.5, "QED": (0.5, None)}`, checked against what the model knows.

    A codec may list further requests as `asks` (dates, names): those stay text unless they are numbers. Ranges are for
    codecs with `takes_ranges`.

    Raises:
        UsageError: Malformed, unknown (near names are given), twice, or not finite.
    """
    known: dict[str, Any] = {c.name: c for c in model.codec.conditions}
    texts = frozenset(getattr(model.codec, "asks", ()))
    known |= dict.fromkeys(texts)
    wanted: dict[str, Any] = {}
    for entry in entries:
        if entry.partition("=")[0].strip() in texts:
            name, value = _text_pair(entry)
        elif ".." in entry and getattr(model.codec, "takes_ranges", False):
            name, value = _range("--cond", entry)
        else:
            name, value = _pair("--cond", entry)
        if name not in known:
            raise UsageError(
                f"--cond: this model cannot be asked for {name!r}{near(name, known)} "
                f"(it knows {', '.join(known) or 'no conditions'})"
            )
        if name in wanted:
            raise UsageError(f"--cond {name} is given twice")
        wanted[name] = value
        mean, std = getattr(known[name], "mean", None), getattr(known[name], "std", None)
        nearest = _nearest(value, mean)
        if mean is not None and std and nearest is not None and abs(nearest - mean) > 4 * std:
            note(
                f"warning: {name}={nearest:g} is {abs(nearest - mean) / std:.1f} standard deviations from the "
                f"training mean ({mean:.4g}, standard deviation {std:.4g}); expect it to be missed"
            )
    return wanted


def parse_guidance(entries: Sequence[str], model: Model) -> float | dict[str, float] | None:
    """One number, or `NAME=W` pairs, or nothing.

    Raises:
        UsageError: Malformed, mixed, or an unknown condition.
    """
    if not entries:
        return None
    if len(entries) == 1 and "=" not in entries[0]:
        return _number("--guidance", entries[0])
    if any("=" not in entry for entry in entries):
        raise UsageError(
            "--guidance: expected one number, or NAME=W for each condition, got a mixture or several numbers"
        )
    pairs = dict(_pair("--guidance", entry) for entry in entries)
    known = [c.name for c in model.codec.conditions]
    for name in pairs:
        if name not in known:
            raise UsageError(
                f"--guidance: no condition {name!r}{near(name, known)} (the model knows {', '.join(known)})"
            )
    return pairs


def draw(
    model: Model,
    count: int,
    args: argparse.Namespace,
    *,
    cond: Mapping[str, Any],
    guidance: float | Mapping[str, float] | None,
    what: str = "sampling",
) -> Any:
    """Native samples, under a progress bar."""
    with Bars() as bars:
        return model.sample(
            count,
            cond=cond,
            guidance=guidance,
            steps=args.steps,
            seed=args.seed,
            batch_size=args.batch_size,
            candidates=args.candidates if cond else 1,
            progress=lambda done, total: bars(what, done, total),
        )


def _text_pair(entry: str) -> tuple[str, float | str]:
    name, _, text = (part.strip() for part in entry.partition("="))
    try:
        return name, float(text)
    except ValueError:
        return name, text


def _pair(option: str, entry: str) -> tuple[str, float]:
    name, equals, text = entry.partition("=")
    if not equals or not name:
        raise UsageError(f"{option}: expected NAME=NUMBER, got {entry!r}")
    return name.strip(), _number(f"{option} {name}", text)


def _range(option: str, entry: str) -> tuple[str, tuple[float | None, float | None]]:
    """`NAME=LOW..HIGH`, one end of which may be left out."""
    name, equals, text = (part.strip() for part in entry.partition("="))
    ends = text.split("..")
    if not equals or not name or len(ends) != 2 or ends == ["", ""]:
        raise UsageError(f"{option}: expected NAME=LOW..HIGH (one of them may be left out), got {entry!r}")
    low, high = (_number(f"{option} {name}", end.strip()) if end.strip() else None for end in ends)
    if low is not None and high is not None and not low < high:
        raise UsageError(f"{option} {name}: expected LOW..HIGH with LOW below HIGH, got {text!r}")
    return name, (low, high)


def _nearest(value: Any, mean: float | None) -> float | None:
    """What is asked for, or what of a range is nearest to the mean; None where that is no number."""
    if isinstance(value, str) or mean is None:
        return None
    if not isinstance(value, tuple):
        return value
    low, high = value
    return max(mean if low is None else low, min(mean, mean if high is None else high))


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{option}: expected a finite number, got {text!r}")
    return value
