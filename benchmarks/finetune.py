r"""Fine-tuning on 100 molecules of a ring class that QM9 lacks, beside other ways to spend the same time.

For each class (`finetune_classes`): `qm9-small` as it is; adapted by low-rank terms (the defaults of `scildm
finetune`); the same with the decoder left as it was; with all weights of the denoiser; and a denoiser of the same size
trained on the same molecules from scratch, by as many steps of as many rows. The rest of the class is never trained
on. Settings were chosen on the first class, the others are reported. Each case is kept in the work folder, so that a
run that was stopped goes on where it was.

Of `count` samples each (20 steps, the guide on): `share` have the class's Murcko scaffold; `novel` are valid and not
among the 100; `new` of those with the scaffold are not among the 100; `near` is the mean Tanimoto similarity (Morgan,
radius 2) to the nearest held-out member, of the training molecules themselves for comparison; `found` of the
held-out members are among the samples; `logP` is the first Wasserstein distance of logP to held-out members.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import Row, machine, parser, print_rows, versions, without_aims, write_rows
from finetune_classes import CLASSES, scaffold_of, split_class
from rdkit import Chem
from rdkit.Chem import Crippen
from scipy.stats import wasserstein_distance

import sciLDM
from sciLDM.adapt import FineTune, finetune
from sciLDM.domains.molecules.decode import Decoded, decode_molecules
from sciLDM.domains.molecules.neighbours import nearest
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource

WAYS = ("before", "low rank", "low rank, old decoder", "all weights", "from scratch")
SHOWN = ("share", "novel", "new", "near", "unique", "raw_valid", "found")
REPORTED = tuple(CLASSES)[1:]
RESULTS = Path(__file__).parent / "results" / "finetune.json"


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    count: int = 1000
    items: int = 100
    steps: int = 20
    training: int | None = None


def adapted(base: LatentDiffusion, way: str, items: list[str], folder: Path, sizes: Sizes) -> LatentDiffusion:
    """The model of a way; its card says how long training took."""
    settings = FineTune()
    changes: dict[str, Any] = {"precision": "bf16"}
    if sizes.training is not None:
        changes["max_steps"] = sizes.training
    if way == "low rank, old decoder":
        settings = replace(settings, decoder_steps=0)
    elif way == "all weights":
        settings = replace(settings, rank=None)
        changes["learning_rate"] = 1e-4
    elif way == "from scratch":
        settings, base = replace(settings, rank=None), untrained(base)
    settings = replace(settings, stage=replace(settings.stage, **changes))
    return finetune(base, items, folder, settings)


def untrained(model: LatentDiffusion) -> LatentDiffusion:
    """The same autoencoder with an untrained denoiser, and without a guide, which knows other molecules."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        new = LatentDiffusion({**model.config, "guide": None}, model.state, card=model.card)
    for name in ("autoencoder", "stats"):
        new.parts[name].load_state_dict(model.parts[name].state_dict())
    return new


@torch.no_grad()
def drawn(model: LatentDiffusion, sizes: Sizes) -> list[Decoded]:
    """Samples without the table, whose nearest neighbours in QM9 nobody asks for here."""
    model.to("cpu", dtype=torch.bfloat16)
    noise, ids = NoiseSource(0), range(sizes.count)
    request = model.codec.plan(sizes.count, {}, noise, ids)
    z = model.sample_latents(request, ids, noise, sampler=model.experiment.sampler.with_steps(sizes.steps))
    return decode_molecules(model.autoencoder.decode(z, request.mask), model.codec.vocabulary)


def scores(samples: list[Decoded], ring: str, items: list[str], held_out: list[str]) -> dict[str, float]:
    """As the module says; molecules are compared without stereo."""
    valid = [Chem.CanonSmiles(d.smiles, useChiral=0) for d in samples if d.smiles]
    inside = [s for s in valid if scaffold_of(s) == ring]
    known = set(items)
    return {
        "raw_valid": float(np.mean([d.valid_raw for d in samples])),
        "valid": len(valid) / len(samples),
        "unique": len(set(valid)) / len(valid),
        "share": len(inside) / len(samples),
        "novel": sum(s not in known for s in valid) / len(samples),
        "new": sum(s not in known for s in inside) / len(inside) if inside else float("nan"),
        "different": float(len(set(inside))),
        "near": float(nearest(valid, held_out)["similarity"].mean()),
        "found": len(set(valid) & set(held_out)) / len(held_out),
        "logP": float(wasserstein_distance(log_p(valid), log_p(held_out))),
    }


def log_p(smiles: list[str]) -> list[float]:
    return [Crippen.MolLogP(Chem.MolFromSmiles(s)) for s in smiles]


def case(base: LatentDiffusion, name: str, way: str, work: Path, sizes: Sizes) -> None:
    """Scores of one class and way, unless they are in the work folder."""
    path = kept_at(work, name, way)
    if path.exists():
        return
    ring, folder = CLASSES[name], path.with_suffix("")
    items, held_out = split_class(ring, train=sizes.items)
    model = base if way == "before" else adapted(base, way, items, folder, sizes)
    told = {} if way == "before" else model.card["finetuned"]
    wanted = ("seconds", "steps", "trained", "rebuilt_before", "rebuilt", "validation")
    found = scores(drawn(model, sizes), ring, items, held_out) | {k: told[k] for k in wanted if k in told}
    path.write_text(json.dumps(found), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)


def kept_at(work: Path, name: str, way: str) -> Path:
    return work / (f"{name}-{way}".replace(" ", "_").replace(",", "") + ".json")


def collected(work: Path, sizes: Sizes) -> dict[str, dict[str, Any]]:
    """Everything in the work folder: sizes of each class, its floor, and scores by way."""
    found = {}
    for name, ring in CLASSES.items():
        paths = {way: kept_at(work, name, way) for way in WAYS}
        ways = {way: json.loads(p.read_text(encoding="utf-8")) for way, p in paths.items() if p.exists()}
        if ways:
            items, held_out = split_class(ring, train=sizes.items)
            near = float(nearest(items, held_out)["similarity"].mean())
            found[name] = {
                "items": len(items),
                "held_out": len(held_out),
                "near of the items": near,
                "ways": ways,
            }
    return found


def rows_of(found: dict[str, dict[str, Any]]) -> list[Row]:
    """The table."""
    rows = []
    for name, told in found.items():
        rows.append(Row(f"{name}: near, of the {told['items']} themselves", told["near of the items"], "1"))
        for way, values in told["ways"].items():
            for key in SHOWN:
                aim = 0.8 if key == "novel" and way == "low rank" else None
                rows.append(Row(f"{name}, {way}: {key}", values[key], "1", at_least=aim))
    return rows


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("--classes", nargs="+", choices=CLASSES, default=REPORTED, help="which")
    arguments.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="which")
    arguments.add_argument("--count", type=int, default=1000, help="samples (default: 1000)")
    arguments.add_argument("--work", type=Path, default=Path("runs/bench-finetune"), help="work folder")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    sizes = Sizes(32, 20, 2, 2) if options.quick else Sizes(options.count)
    work = options.work / ("quick" if options.quick else f"{options.count}")
    work.mkdir(parents=True, exist_ok=True)
    host, base = machine(), sciLDM.load("qm9-small")
    for name in options.classes:
        for way in options.ways:
            case(base, name, way, work, sizes)
    found = collected(work, sizes)
    rows = without_aims(rows_of(found)) if options.quick else rows_of(found)
    print_rows(rows)
    write_rows(rows, options.json)
    if not options.quick:
        record = {
            "machine": host, "versions": versions(("torch", "rdkit")), "sizes": asdict(sizes), "rings": dict(CLASSES),
            "settings_chosen_on": next(iter(CLASSES)), "classes": found,
        }  # fmt: skip
        RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
