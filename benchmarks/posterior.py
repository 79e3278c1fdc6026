r"""Reconstruction from sparse observations with a small latent prior: ours beside DPS, PSLD and classical methods.

The prior (`posterior_prior.py`) is trained on procedural phantoms once and kept in the work folder, as are the scores
of each task and method: a run that was stopped goes on where it was. Data are simulated on a finer grid than they are
reconstructed on (`posterior_tasks.py`). Weights are tuned on validation volumes, intervals scaled on calibration
volumes, and scores are those of test volumes; the three have seeds of their own.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from _common import CLOCKS, Row, machine, parser, print_rows, versions, without_aims, write_rows
from phantom_domain import fine_volumes, volumes
from posterior_methods import CGLS, TV, Guided, Interpolated, Method, ZeroFilled, psnr, steepest
from posterior_prior import SIDE, trained
from posterior_tasks import NOISE, ObservedTask, tasks
from torch import Tensor

from sciLDM.evaluate.calibration import assess_posteriors
from sciLDM.guidance.posterior import DPSSolver, PSLDSolver
from sciLDM.model import LatentDiffusion
from sciLDM.operators import Observation
from sciLDM.posterior.conformal import Conformal, StdBins

OURS, TUNED = "ours", "TV"
SEEDS = {"validation": 11, "calibration": 12, "test": 13}
GAIN, ENOUGH = 1.5, 4
BASELINE_STEPS = 50
"""Steps of DPS and PSLD, which need more of them than the 20 of ours."""
LEVEL = 0.9


@final
@dataclass(frozen=True)
class Volumes:
    """A set of volumes, seen by the instrument and as they should be reconstructed."""

    fine: Tensor
    truth: Tensor
    seed: int

    @staticmethod
    def drawn(name: str, count: int) -> "Volumes":
        """The first `count` of a set."""
        fine = fine_volumes(range(count), SIDE, seed=SEEDS[name])
        return Volumes(fine, volumes(fine), SEEDS[name])

    def observed(self, task: ObservedTask) -> Observation:
        """Noisy values."""
        return task.observe(self.fine, seed=self.seed)


def methods(model: LatentDiffusion, samples: int) -> list[Method]:
    """The rows of every task, classical ones first."""
    classical = [Interpolated("slinear"), Interpolated("cubic"), ZeroFilled(), CGLS(), TV()]
    published = {"samples": samples, "corrected": False, "steps": BASELINE_STEPS, "calibrated": False}
    return [
        *classical,
        Guided("DPS", model, DPSSolver(), candidates=steepest("DPS"), **published),
        Guided("PSLD", model, PSLDSolver(), candidates=steepest("PSLD"), **published),
        Guided(OURS, model, model.solver, samples=samples),
    ]


def score(
    method: Method, task: ObservedTask, sets: Mapping[str, Volumes], now: Any, pictures: Path | None
) -> dict[str, Any]:
    """Tune, calibrate and test one method on one task."""
    validation, calibration, test = (sets[name] for name in SEEDS)
    chosen, note = method.tuned(task, validation.observed(task), validation.truth)
    observation, truth = test.observed(task), test.truth
    start = now()
    found = chosen(task, observation)
    seconds = (now() - start) / len(truth)
    result: dict[str, Any] = {
        "psnr": psnr(found.mean, truth).tolist(),
        "chi2 of mean": chi2(task, observation, found.mean).tolist(),
        "seconds": seconds,
        "tuned": note,
        "evaluations": dict(found.evaluations),
        "network evaluations": sum(found.evaluations.get(k, 0) for k in ("denoiser", "denoiser_vjp")),
        "crps": float((found.mean - truth).abs().mean()),  # of a point
    }
    kept = {"truth": truth, "mean": found.mean}
    if found.posterior is not None:
        raw = assess_posteriors([found.posterior], [truth])[0]
        result |= {
            "chi2": found.posterior.chi2.tolist(),
            "coverage uncalibrated": raw.gaussian_coverage[LEVEL].value,
            "spread-skill uncalibrated": raw.spread_skill.value,
            "crps": raw.crps.value,
            "warnings": found.posterior.details.get("warnings", []),
            "data step": [found.posterior.details[f"data_step_{k}"] for k in ("iterations", "residual")],
        }
        kept |= {"std": found.posterior.std, "sample": found.posterior.samples[:, 0]}
    if found.posterior is not None and chosen.calibrated:
        known = chosen(task, calibration.observed(task)).posterior
        assert known is not None
        bins = StdBins.of([known])
        scale = Conformal.fit([known], [calibration.truth], family=task.name, regions=bins)
        labels = bins(found.posterior)
        calibrated = scale.apply(found.posterior, task.name, labels, level=LEVEL)
        whole = assess_posteriors([calibrated], [truth])[0]
        groups = assess_posteriors([calibrated], [truth], regions=labels)
        result |= {
            "coverage": whole.gaussian_coverage[LEVEL].value,
            "coverage interval": [whole.gaussian_coverage[LEVEL].lower, whole.gaussian_coverage[LEVEL].upper],
            "coverage by spread": [g.gaussian_coverage[LEVEL].value for g in groups.values()],
            "spread-skill": whole.spread_skill.value,
            "crps": whole.crps.value,
            "crps uncalibrated": raw.crps.value,
        }
        kept |= {"std": calibrated.std, "sample": calibrated.samples[:, 0]}
    if pictures is not None:
        torch.save({name: value[:2].clone() for name, value in kept.items()}, pictures)
    return result


def chi2(task: ObservedTask, observation: Observation, x: Tensor) -> Tensor:
    """`|y - A x|^2 / (m sigma^2)` of each case."""
    residual = (observation.values - task.operator(x)) / NOISE
    return residual.square().flatten(1).mean(dim=1)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def rows(found: Mapping[str, Mapping[str, dict[str, Any]]]) -> list[Row]:
    """The table, with aims on our own rows."""
    made: list[Row] = []
    gains: dict[str, float] = {}
    for task, results in found.items():
        for name, r in results.items():
            own = name == OURS
            note = (
                f"{r['network evaluations']} network evaluations" if r["network evaluations"] else r["tuned"]
            )
            made.append(Row(f"{task}: {name}, PSNR", mean(r["psnr"]), "dB", note=note))
            if own and TUNED in results:
                each = [a - b for a, b in zip(r["psnr"], results[TUNED]["psnr"], strict=True)]
                gains[task] = mean(each)
                note = f"{min(each):.2f} to {max(each):.2f} over the volumes"
                made.append(Row(f"{task}: {name}, gain over TV", gains[task], "dB", GAIN, note=note))
            c = mean(r.get("chi2", r["chi2 of mean"]))
            made.append(Row(f"{task}: {name}, chi-square", c, "1", note=_range(c, 0.8, 1.2) if own else ""))
            if "coverage uncalibrated" in r:
                cover, note = r["coverage uncalibrated"], "not calibrated"
                if "coverage" in r:
                    note, cover = f"{cover:.3f} before; {_range(r['coverage'], 0.85, 0.95)}", r["coverage"]
                made.append(Row(f"{task}: {name}, coverage of 90 %", cover, "1", note=note))
            made.append(Row(f"{task}: {name}, CRPS", r["crps"], "1"))
            made.append(Row(f"{task}: {name}, a volume", r["seconds"], "s"))
    if gains:
        count = sum(g >= GAIN for g in gains.values())
        made.append(Row(f"tasks where ours is above TV by {GAIN} dB", count, f"of {len(gains)}", ENOUGH))
    return made


def _range(value: float, low: float, high: float) -> str:
    return f"aim {low:g} to {high:g} {'met' if low <= value <= high else 'MISSED'}"


def table(found: Mapping[str, Mapping[str, dict[str, Any]]]) -> str:
    """One line for each task and method."""
    lines = [
        f"{'task':<9}{'method':<16}{'PSNR':>7}{'chi2':>8}{'chi2(mean)':>11}{'cover':>7}{'raw':>7}{'CRPS':>8}"
        f"{'s/vol':>8}{'NFE':>5}  tuned"
    ]
    for task, results in found.items():
        for name, r in results.items():
            sampled = f"{mean(r['chi2']):8.3g}" if "chi2" in r else " " * 8
            cover = "".join(
                f"{r[k]:7.3f}" if k in r else " " * 7 for k in ("coverage", "coverage uncalibrated")
            )
            lines.append(
                f"{task:<9}{name:<16}{mean(r['psnr']):7.2f}{sampled}{mean(r['chi2 of mean']):11.3g}{cover}"
                f"{r['crps']:8.4f}{r['seconds']:8.2f}{r['network evaluations'] or '':>5}  {r['tuned']}"
            )
    return "\n".join(lines)


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--work", type=Path, default=Path("runs/posterior"), help="keeps prior and scores")
    arguments.add_argument("--tasks", nargs="*", help="some of the tasks")
    arguments.add_argument("--methods", nargs="*", help="some of the methods")
    arguments.add_argument(
        "--volumes", type=int, default=8, help="of each set but validation, which has half"
    )
    arguments.add_argument("--samples", type=int, default=8, help="of each volume's posterior")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    now = CLOCKS[options.clock]
    model = trained(options.work / "prior", quick=options.quick)
    count, samples = (2, 4) if options.quick else (options.volumes, options.samples)
    sets = {
        name: Volumes.drawn(name, max(2, count // 2) if name == "validation" else count) for name in SEEDS
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    began = time.perf_counter()
    for task in tasks(SIDE).values():
        if options.tasks and task.name not in options.tasks:
            continue
        for method in methods(model, samples):
            if not method.applies(task) or (options.methods and method.name not in options.methods):
                continue
            path = options.work / "scores" / f"{task.name}-{method.name}-{count}-{samples}.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                result = score(method, task, sets, now, path.with_suffix(".pt"))
                result["mismatch"] = task.mismatch(sets["test"].fine)
                path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            found.setdefault(task.name, {})[method.name] = json.loads(path.read_text(encoding="utf-8"))
            print(f"{task.name}: {method.name}, {time.perf_counter() - began:.0f} s", flush=True)
    print(table(found), flush=True)
    made = rows(found)
    made = without_aims(made) if options.quick else made
    print_rows([row for row in made if row.verdict])
    write_rows(made, options.json)
    if not (options.quick or options.tasks or options.methods):
        summary = {
            "machine": machine(),
            "versions": versions(["sciLDM", "torch"]),
            "training": model.card.get("training", {}),
            "volumes": count,
            "samples": samples,
            "scores": found,
        }
        path = Path(__file__).parent / "results" / "posterior.json"
        path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
