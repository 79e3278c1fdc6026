"""What the commands take that make another model of a finished one."""

import argparse
from collections.abc import Callable

from sciLDM.cli._arguments import add_model, add_place, count, positive, positive_number

__all__ = ["ADD_MAKING"]


def _finetune(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm finetune RUN --data FILE --output FOLDER [--lora-rank R | --full] [--max-steps N]"
    p.epilog = (
        "The more steps, the nearer samples come to the items, and the more of them repeat one.\n"
        "An interrupted training is continued by the same command."
    )
    add_model(p)
    p.add_argument("--data", metavar="FILE", required=True,
        help="50 to 500 items (molecules: .csv, .tsv, .smi, .sdf; columns named as conditions are labels)")  # fmt: skip
    p.add_argument("--output", "-o", metavar="FOLDER", required=True, help="where the new model goes")
    kind = p.add_mutually_exclusive_group()
    kind.add_argument("--lora-rank", type=positive, default=8, metavar="R",
        help="rank of what is added to each matrix of the denoiser (default: 8)")  # fmt: skip
    kind.add_argument("--full", action="store_true", help="train all weights of the denoiser instead")
    p.add_argument("--max-steps", type=positive, metavar="N", help="steps of the denoiser (default: 100)")
    p.add_argument("--learning-rate", type=float, metavar="R", help="default: 0.001, with --full 0.0001")
    p.add_argument("--decoder-steps", type=count, default=40, metavar="N",
        help="steps of the decoder; 0 leaves it as it is (default: 40)")  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of training (default: 0)")
    p.add_argument("--bf16", action="store_true", help="train the denoiser in bfloat16")
    add_place(p)


def _distill(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm distill RUN --output FOLDER [--method moments] [--steps 4] [--max-minutes M]"
    p.epilog = (
        "The student draws in a few denoiser calls, without guide, what its teacher draws in many with it. The same\n"
        "command continues an interrupted training. `reconstruct` needs the teacher."
    )
    add_model(p)
    p.add_argument("--output", "-o", metavar="FOLDER", required=True, help="where the student goes")
    p.add_argument(
        "--method", default="moments", metavar="NAME",
        help="moments (moment matching) or consistency (default: moments)",
    )  # fmt: skip
    p.add_argument(
        "--steps", type=positive, nargs="+", default=[4], metavar="N",
        help="denoiser calls to train for; the largest is the student's default (default: 4)",
    )  # fmt: skip
    p.add_argument(
        "--max-steps", type=positive, metavar="N", help="optimiser steps (default: the method's own)"
    )
    p.add_argument(
        "--max-minutes", type=positive_number, metavar="M", help="wall-clock limit (default: none)"
    )
    p.add_argument(
        "--batch-size", type=positive, metavar="N", help="samples a step (default: the method's own)"
    )
    p.add_argument(
        "--learning-rate", type=positive_number, metavar="R", help="peak rate (default: the method's own)"
    )
    p.add_argument(
        "--samples", type=positive, metavar="N",
        help="distil on N samples of the model instead of the training data, which are used where they can be had",
    )  # fmt: skip
    p.add_argument("--seed", type=int, default=0, help="of batches and noise (default: 0)")
    p.add_argument("--fp32", action="store_true", help="train in float32 instead of bfloat16")
    add_place(p)


def _prune(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm prune RUN --output FOLDER [--keep 0.5] [--max-steps N]"
    p.epilog = (
        "The folder becomes a run: `scildm sample FOLDER`, `scildm evaluate FOLDER`. The data that the model was\n"
        "trained on must be at hand. An interrupted call is continued by the same command."
    )
    add_model(p)
    p.add_argument("--output", "-o", metavar="FOLDER", required=True, help="run folder of the smaller model")
    p.add_argument(
        "--keep", type=float, default=0.5, metavar="SHARE", help="of the denoiser's parameters (default: 0.5)"
    )
    p.add_argument(
        "--samples", type=positive, default=4096, metavar="N",
        help="training latents that heads and hidden units are scored on (default: 4096)",
    )  # fmt: skip
    p.add_argument(
        "--max-steps", type=positive, default=2000, metavar="N", help="steps of recovery (default: 2000)"
    )
    p.add_argument("--max-minutes", type=float, metavar="M", help="or as long (default: no limit)")
    p.add_argument(
        "--batch-size", type=positive, metavar="N", help="samples a step (default: as it was trained)"
    )
    p.add_argument(
        "--learning-rate", type=float, metavar="R", help="largest one (default: half of the denoiser's)"
    )
    p.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: torch decides)")


def _quantise(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm quantise RUN --output FOLDER"
    p.epilog = "They are read back as floating-point numbers: the file is smaller, sampling is not faster."
    add_model(p)
    p.add_argument("--output", "-o", metavar="FOLDER", required=True, help="model folder")


def _export(p: argparse.ArgumentParser) -> None:
    p.usage = "scildm export RUN --output FILE [--part denoiser|decoder]"
    p.epilog = (
        "FILE.pt2 is a program of torch.export, FILE.onnx an ONNX graph (`pip install sciLDM[onnx]`). Any batch size.\n"
        "FILE.json (FILE with its ending) lists inputs and outputs. What was written is run and compared with the\n"
        "model before it is kept."
    )
    add_model(p)
    p.add_argument("--output", "-o", metavar="FILE", required=True, help="ends in .pt2 or .onnx")
    p.add_argument("--part", choices=("denoiser", "decoder"), default="denoiser", help="(default: denoiser)")


ADD_MAKING: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "finetune": _finetune,
    "distill": _distill,
    "prune": _prune,
    "quantise": _quantise,
    "export": _export,
}
