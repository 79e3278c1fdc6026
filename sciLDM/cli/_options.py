"""What each command takes."""

import argparse
from collections.abc import Callable

from sciLDM.cli._arguments import add_model, add_place, not_negative, positive
from sciLDM.cli._options_making import ADD_MAKING

__all__ = ["ADD", "COMMANDS", "add_sampling"]

COMMANDS = {
    "fit": "train a model from a configuration",
    "finetune": "adapt a model to some tens or hundreds of items of your own",
    "distill": "train a student of a model that samples in a few steps",
    "prune": "remove half of a model's denoiser (or another share), and train the rest to make up for it",
    "quantise": "store a model's weights as 8-bit integers",
    "export": "write the denoiser or the decoder for other programs (.pt2 or .onnx)",
    "sample": "draw samples from a model, with or without conditions",
    "edit": "variants of a lead, as like it as asked",
    "predict": "predict a measured quantity of new objects from a table of labelled ones, with intervals",
    "reconstruct": "rebuild fields from observations of them, with error bars",
    "forecast": "continue the last states of a file, as an ensemble",
    "evaluate": "score samples, each metric beside its floor; or test how well requests are met",
    "bench": "score samples under a published benchmark's protocol, beside the floor and published rows",
    "report": "write one HTML file about a run",
    "doctor": "examine what sampler, steps, temperature and guidance do to the latents, and the state of a run",
    "audit": "compare groups of patients, sites or scanners: accuracy, coverage, the worst group",
    "verify": "read the synthetic marks of a file, and look for a key's watermark",
    "domains": "list the domain adapters and whether they can be used",
    "models": "list the models that come with the package",
    "demo": "train, evaluate and report a small molecular model from start to end",
}


def _fit(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm fit CONFIG [--output RUN] [--denoiser_stage.max_steps=100 ...]"
    p.epilog = (
        "Any option of the configuration can be set here by its dotted name:\n"
        "  scildm fit configs/molecules/demo.yaml --denoiser_stage.max_steps=100 --seed 1\n"
        "`scildm fit CONFIG --print-config` shows all of them with their values.\n"
        "An interrupted run is continued by the same command."
    )
    p.add_argument("config", metavar="CONFIG", help="YAML file of the experiment, see configs/")
    p.add_argument("--output", "-o", metavar="RUN", help="run folder (default: runs/<name of CONFIG>)")
    p.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE",
        help="options of the configuration, for instance --set denoiser_stage.max_steps=100 seed=1",
    )  # fmt: skip
    p.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: torch decides)")
    p.add_argument("--print-config", action="store_true", help="print the complete configuration and stop")


def add_sampling(
    p: argparse.ArgumentParser, *, steps: str = "the model's own", batch_size: int = 512
) -> None:
    p.add_argument(
        "--guidance", action="append", default=[], metavar="W",
        help="how much to insist on conditions: a number for all, or NAME=W, repeated (1: no extra insistence)",
    )  # fmt: skip
    p.add_argument(
        "--steps", type=positive, metavar="N", help=f"denoiser calls per sample (default: {steps})"
    )
    p.add_argument("--seed", type=int, default=0, help="sample i depends on (seed, i) alone (default: 0)")
    p.add_argument(
        "--batch-size", type=positive, default=batch_size, metavar="N",
        help=f"samples at once (default: {batch_size})",
    )  # fmt: skip
    add_place(p)
    p.add_argument(
        "--bf16", action="store_true", help="run the denoising network in bfloat16: faster, nearly the same"
    )


def _candidates(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--candidates", type=positive, default=1, metavar="K",
        help="draw K for each sample asked for something and keep the nearest, at K times the price (default: 1)",
    )  # fmt: skip


def _sample(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm sample RUN [-n N] [--cond NAME=VALUE ...] [--guidance W] [--output FILE]"
    add_model(p)
    p.add_argument(
        "-n", "--number", "--count", type=positive, default=100, metavar="N",
        help="how many samples (default: 100)",
    )  # fmt: skip
    p.add_argument(
        "--cond", action="append", default=[], metavar="NAME=VALUE",
        help="ask for a property, in the data's own units, or for a range of it (NAME=1..2, NAME=1..; molecules); "
        "repeat for several (any subset of the model's conditions)",
    )  # fmt: skip
    _candidates(p)
    add_sampling(p)
    p.add_argument(
        "--output", "-o", metavar="FILE", help="write the samples; the ending decides (.csv, .smi, .sdf, ...)"
    )
    p.add_argument("--conformers", action="store_true", help="3-D structures in an .sdf file (molecules)")
    p.add_argument("--scaffold", metavar="SMILES", help="all contain it; * where to attach (molecules)")


def _reconstruct(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm reconstruct RUN --input FILE [--operator SPEC] [--noise-std S] [--output FOLDER]"
    p.epilog = (
        "SPEC names an operator of the domain and its options: mask, thick:factor=4,axis=z, ...\n"
        "Files and operators are the domain's; a wrong name lists those it knows."
    )
    add_model(p)
    p.add_argument("--input", "-i", metavar="FILE", required=True, help="what was observed")
    p.add_argument(
        "--operator", metavar="SPEC", help="how it was observed (default: as the file says, gaps and all)"
    )
    p.add_argument(
        "--noise-std", type=not_negative, metavar="S",
        help="standard deviation of the observation errors, in the data's units (default: estimated)",
    )  # fmt: skip
    p.add_argument(
        "--samples", "-n", type=positive, default=16, metavar="N", help="posterior samples (default: 16)"
    )
    p.add_argument(
        "--cond", action="append", default=[], metavar="NAME=VALUE",
        help="what else is known, in the data's own units; repeat for several",
    )  # fmt: skip
    add_sampling(p, steps="20", batch_size=32)
    p.add_argument(
        "--output", "-o", metavar="FOLDER",
        help="where mean, spread and samples go (default: reconstruction/ in the run folder)",
    )  # fmt: skip


def _forecast(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm forecast RUN --input FILE --output FILE [--leads N] [--members N]"
    p.epilog = (
        "FILE holds the last known states, in order. A .zarr output is written some members at a time: memory stays\n"
        "that of a few, and an interrupted forecast is continued by the same command."
    )
    add_model(p)
    p.add_argument("--input", "-i", metavar="FILE", required=True, help="the last known states")
    p.add_argument("--output", "-o", metavar="FILE", required=True, help="the forecast, .nc or .zarr")
    p.add_argument("--leads", type=positive, default=3, metavar="N", help="states to forecast (default: 3)")
    p.add_argument(
        "--members", "-n", type=positive, default=16, metavar="N", help="size of the ensemble (default: 16)"
    )
    p.add_argument(
        "--cond", action="append", default=[], metavar="NAME=VALUE",
        help="conditions besides the dates, in the data's own units; repeat for several",
    )  # fmt: skip
    add_sampling(p, batch_size=16)


def _evaluate(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm evaluate RUN [-n N | --samples FILE] [--targets NAME,NAME ...]"
    add_model(p)
    p.add_argument(
        "-n", "--number", type=positive, metavar="N",
        help="samples to draw and score (default: 10000, or none when only --targets is given)",
    )  # fmt: skip
    p.add_argument(
        "--samples", metavar="FILE", help="score these samples instead, a .csv written by `scildm sample`"
    )
    p.add_argument(
        "--targets", metavar="NAMES",
        help="properties to ask for, separated by commas, or `all`: compares requested with realised values",
    )  # fmt: skip
    p.add_argument(
        "--per-target", type=positive, default=100, metavar="N", help="samples per target (default: 100)"
    )
    _candidates(p)
    add_sampling(p)
    p.add_argument("--output", "-o", metavar="FOLDER", help="where results go (default: the run folder)")


def _bench(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm bench NAME RUN [-n N] [--steps N] [--output FOLDER]"
    p.epilog = (
        "NAME: qm9, zinc250k (GDSS protocol, 10,000 molecules), moses (30,000; see datasets/moses_metrics)\n"
        "or guacamol (10,000, against what the model was trained on).\n"
        "Results of one model with other settings (say --steps 4) are kept and printed side by side."
    )
    p.add_argument("benchmark", metavar="NAME", help="name of the benchmark")
    p.add_argument("run", metavar="RUN", help="run, model, or a file of samples of any program (.smi, .csv)")
    p.add_argument(
        "-n", "--number", "--samples", type=positive, metavar="N", help="samples to draw (default: the protocol's)"
    )  # fmt: skip
    add_sampling(p)
    p.add_argument("--domain", default="molecules", help="whose benchmark, for a file (default: molecules)")
    p.add_argument("--output", "-o", metavar="FOLDER", help="where results go (default: the run folder)")


def _report(p: argparse.ArgumentParser) -> None:
    add_model(p)
    p.add_argument(
        "--output", "-o", metavar="FOLDER", help="folder with the results (default: the run folder)"
    )


def _doctor(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm doctor RUN [--steps N ...] [--output FOLDER]"
    p.epilog = (
        "The sampler is run on an exact Gaussian fitted to the run's latents, so that every departure is its own.\n"
        "Where no latents are found, some are drawn from the model, which takes longer."
    )
    add_model(p)
    p.add_argument(
        "--steps", type=positive, nargs="+", metavar="N", help="numbers of steps to try (default: 5 to 200)"
    )
    p.add_argument(
        "--samples", type=positive, default=1024, metavar="N",
        help="samples to draw where no latents come with the model (default: 1024)",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of choices and samples (default: 0)")
    p.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: torch decides)")
    p.add_argument(
        "--output", "-o", metavar="FOLDER", help="where doctor.html goes (default: the run folder)"
    )


def _edit(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm edit RUN --lead OBJECT --similarity S [-n N] [--cond NAME=VALUE ...] [--output FILE]"
    add_model(p)
    p.add_argument("--lead", metavar="OBJECT", required=True, help="what to vary (molecules: SMILES)")
    p.add_argument(
        "--similarity", type=float, default=0.6, metavar="S",
        help="how like the lead (molecules: Tanimoto similarity; default: 0.6)",
    )  # fmt: skip
    p.add_argument("-n", "--number", type=positive, default=10, metavar="N", help="variants (default: 10)")
    p.add_argument(
        "--cond", action="append", default=[], metavar="NAME=VALUE", help="what else to ask for, as in `sample`"
    )  # fmt: skip
    add_sampling(p)
    p.add_argument("--output", "-o", metavar="FILE", help="write the variants; the ending decides")


def _predict(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm predict RUN --data FILE --target NAME [--input FILE] [--level P] [--output FILE]"
    p.epilog = (
        "A Gaussian process learns the quantity from what the model's denoiser makes of the labelled rows; a fifth of\n"
        "them is kept apart and says how wide the intervals must be. Rows without a value are predicted."
    )
    add_model(p)
    p.add_argument("--data", metavar="FILE", required=True, help="table of objects, some with a value")
    p.add_argument("--target", metavar="NAME", required=True, help="column of the quantity")
    p.add_argument("--input", "-i", metavar="FILE", help="other objects to predict")
    p.add_argument(
        "--level", type=float, default=0.9, metavar="P", help="share that intervals hold (default: 0.9)"
    )
    p.add_argument("--seed", type=int, default=0, help="of what is kept apart (default: 0)")
    p.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: torch decides)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    p.add_argument("--bf16", action="store_true", help="run the denoising network in bfloat16")
    p.add_argument(
        "--output", "-o", default="predictions.csv", metavar="FILE", help="default: predictions.csv"
    )


def _audit(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm audit CASES --by NAME [NAME ...] [--groups TABLE] [--output FILE]"
    p.epilog = "CASES is the `cases.csv` of a study: one row for each volume, with its scores."
    p.add_argument("cases", metavar="CASES", help="table of scores, one row a case")
    p.add_argument(
        "--by", nargs="+", required=True, metavar="NAME",
        help="columns that make groups (sex, age, scanner, ...); numbers are cut into thirds",
    )  # fmt: skip
    p.add_argument(
        "--groups", metavar="TABLE", help="table with these columns, such as a BIDS participants.tsv"
    )
    p.add_argument("--domain", default="medical", metavar="NAME", help="whose cases (default: medical)")
    p.add_argument("--output", "-o", metavar="FILE", help="also write the result as JSON")


def _verify(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm verify FILE [--key KEY]"
    p.epilog = "Exit status: 0 when something marks the file as synthetic, 1 when nothing does."
    p.add_argument("file", metavar="FILE", help="a file, or the folder of a DICOM series")
    p.add_argument("--key", metavar="KEY", help="look for the watermark of this key (default: marks alone)")
    p.add_argument("--domain", default="medical", metavar="NAME", help="whose file (default: medical)")


def _demo(p: argparse.ArgumentParser) -> None:
    p.epilog = "What is finished is skipped, so an interrupted demo is continued by the same command."
    p.add_argument(
        "--output", "-o", default="runs/demo", metavar="RUN", help="run folder (default: runs/demo)"
    )
    p.add_argument(
        "-n", "--number", type=positive, default=10_000, metavar="N", help="samples to score (default: 10000)"
    )  # fmt: skip
    p.add_argument(
        "--per-target", type=positive, default=100, metavar="N", help="samples per target (default: 100)"
    )
    p.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: torch decides)")


def _nothing(p: argparse.ArgumentParser) -> None:
    """No arguments."""


ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "fit": _fit,
    "sample": _sample,
    "reconstruct": _reconstruct,
    "forecast": _forecast,
    "evaluate": _evaluate,
    "bench": _bench,
    "report": _report,
    "doctor": _doctor,
    "edit": _edit,
    "predict": _predict,
    "audit": _audit,
    "verify": _verify,
    "domains": _nothing,
    "models": _nothing,
    "demo": _demo,
    **ADD_MAKING,
}
