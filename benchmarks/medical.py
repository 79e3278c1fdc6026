r"""Reconstruction of held-out brain volumes beside classical methods and a supervised network; what it costs.

The prior is trained from `configs/medical/hippocampus.yaml` once and kept in the work folder, as is every image that
any method makes: a run that was stopped goes on where it was. Validation volumes tune the total variation and calibrate
the intervals; scores are those of test volumes. The second part (`medical_cost.py`) measures a posterior of a small
patch, and training steps, samples and memory beside MONAI's networks of equal size.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from _common import Row, machine, parser, print_rows, versions, without_aims, write_rows
from medical_cost import costs

from sciLDM import fit, load
from sciLDM.domains.medical import Volume, crop
from sciLDM.domains.medical.sources import read_entry
from sciLDM.domains.medical.study import StudySettings, reconstruction_study
from sciLDM.domains.medical.study_result import OURS, Study
from sciLDM.domains.medical.supervised import SupervisedSettings
from sciLDM.experiment import read_config
from sciLDM.model import LatentDiffusion

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "medical"
RESULTS = Path(__file__).parent / "results"
TASKS = ("slices", "thick", "hole")
SUPERVISED = "supervised U-Net"
LEVEL = (0.87, 0.93)
CHI2 = (0.8, 1.2)


def prior(run: Path, config: str) -> LatentDiffusion:
    """The model in `run`, trained there if it is not yet; an interrupted training continues."""
    if not (run / "model").is_dir():
        fit(read_config(CONFIGS / config), run)
    return load(run)  # with the hash of its weights, by which images are kept


def study(model: LatentDiffusion, tasks: Sequence[str], work: Path, settings: StudySettings) -> Study:
    """All methods on all tasks."""
    corpus: Any = model.experiment.domain.prepare(work / "cache", lambda *_: None)
    height = model.codec.grid[2]  # type: ignore[attr-defined]
    volumes = {split: slabs(map(read_entry, corpus.files(split)), height) for split in corpus.sizes}
    return reconstruction_study(
        model,
        volumes,
        tasks,
        settings=settings,
        keep=work / "images",
        progress=lambda what, done, total: print(f"{what}: {done} of {total}", flush=True),
    )


def slabs(volumes: Iterable[Volume], height: int) -> list[Volume]:
    """Whole volumes; those of twice the grid's height or more as slabs, the first of every patient first."""
    parts: list[tuple[int, Volume]] = []
    for volume in volumes:
        x, y, z = volume.shape
        count = z // height if z >= 2 * height else 0
        parts += [(k, crop(volume, (0, 0, k * height), (x, y, height))) for k in range(count)] or [
            (0, volume)
        ]
    return [part for _, part in sorted(parts, key=lambda pair: pair[0])]


def rows(found: Study) -> list[Row]:
    """The table, every method in it; aims on our own rows."""
    made: list[Row] = []
    for row in found.rows:
        label, ours = f"{row['task']}: {row['method']}", row["method"] == OURS
        note = f"SSIM {row['ssim']:.3f}"
        if not ours and row.get("psnr_ahead") is not None:
            note += f"; ours {row['psnr_ahead']:+.2f} dB ({row['lower']:+.2f} to {row['upper']:+.2f})"
        made.append(Row(f"{label}, PSNR", row["psnr"], "dB", note=note))
        if not ours:
            continue
        for name, value, bounds in (
            ("coverage of 90 %", row["coverage"], LEVEL),
            ("chi-square", row["chi2"], CHI2),
        ):
            made.append(Row(f"{label}, {name}", value, "1", note=_inside(value, *bounds)))
        made.append(Row(f"{label}, coverage before calibration", row["coverage_raw"], "1"))
        made.append(Row(f"{label}, CRPS", row["crps"], "1", note="of the intensity range"))
        made.append(Row(f"{label}, a volume", row["seconds"], "s"))
    return made + gains(found)


def gains(found: Study) -> list[Row]:
    """By how much ours lies above what it is held against."""
    made = []
    for row in found.rows:
        ahead, method = row.get("psnr_ahead"), row["method"]
        if ahead is None or method not in ("cubic", "TV", SUPERVISED):
            continue
        aim = -0.3 if method == SUPERVISED else 0.0
        made.append(Row(f"{row['task']}: ours above {method}", ahead, "dB", aim))
    return made


def _inside(value: float, low: float, high: float) -> str:
    return f"aim {low:g} to {high:g} {'met' if low <= value <= high else 'MISSED'}"


def record(
    model: LatentDiffusion, found: Study | None, scores: Sequence[Row], spent: Sequence[Row], path: Path
) -> None:
    """Write the results file; a part that was not run keeps what it said."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content |= {
        "machine": machine(),
        "versions": versions(["sciLDM", "torch", "monai"]),
        "training": model.card.get("training", {}),
    }
    for name, part in (("rows", scores), ("cost", spent)):
        if part:
            content[name] = [vars(row) | {"verdict": row.verdict} for row in part]
    if found is not None:
        content |= {"protocol": found.protocol, "study": found.rows}
    path.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--work", type=Path, default=Path("runs/medical"), help="keeps prior and images")
    arguments.add_argument("--run", type=Path, help="a trained run folder instead of the one in --work")
    arguments.add_argument("--config", default="hippocampus.yaml", help="of configs/medical")
    arguments.add_argument("--tasks", nargs="*", default=list(TASKS), help="slices, thick, hole, views8, ...")
    arguments.add_argument("--test", type=int, default=21, help="test volumes")
    arguments.add_argument("--validation", type=int, default=21, help="volumes that tune and calibrate")
    arguments.add_argument("--samples", type=int, default=16, help="of each volume's posterior")
    arguments.add_argument("--steps", type=int, help="of the sampler; the model's default when left out")
    arguments.add_argument(
        "--results", type=Path, help=f"results file to bring up to date, say {RESULTS}/medical.json"
    )
    arguments.add_argument("--minutes", type=float, default=21.0, help="training of each supervised network")
    arguments.add_argument(
        "--net-steps", type=int, help="its steps instead, for machines that others use too"
    )
    arguments.add_argument("--parts", nargs="*", choices=("study", "cost"), default=["study", "cost"])
    arguments.add_argument(
        "--cost-minutes", type=float, default=2.0, help="training of each network compared"
    )
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    model = prior(options.run or options.work / "prior", options.config)
    quick, scores, spent, found = options.quick, [], [], None
    if "study" in options.parts:
        net = SupervisedSettings(
            minutes=options.minutes, max_steps=2 if quick else options.net_steps, precision="bf16"
        )
        settings = StudySettings(
            samples=2 if quick else options.samples,
            steps=2 if quick else options.steps,
            test=1 if quick else options.test,
            validation=1 if quick else options.validation,
            tuning=1 if quick else 6,
            supervised=net,
        )
        found = study(model, options.tasks, options.work, settings)
        scores = rows(found)
    if "cost" in options.parts:
        spent = costs(
            model,
            options.work / "cache",
            options.cost_minutes,
            repeats=options.repeats,
            clock=options.clock,
            quick=quick,
        )
    made = [*scores, *spent]
    made = without_aims(made) if quick else made
    print_rows(made)
    write_rows(made, options.json)
    if found is not None and not quick:
        found.save(options.work / "study")
    if not quick and options.results is not None:
        record(model, found, scores, spent, options.results)


if __name__ == "__main__":
    main()
