"""Kinds of values, and arguments that many commands take."""

import argparse
import math

__all__ = ["add_model", "add_place", "count", "not_negative", "positive", "positive_number"]


def add_model(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "run", metavar="RUN", help="run folder, model folder, or name of a shipped model (`scildm models`)"
    )


def add_place(p: argparse.ArgumentParser) -> None:
    p.add_argument("--threads", type=positive, metavar="N", help="processor threads (default: torch decides)")
    p.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto, a GPU if there is one)"
    )


def positive(text: str) -> int:
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return value


def count(text: str) -> int:
    try:
        return 0 if text == "0" else positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}") from error


def positive_number(text: str) -> float:
    value = not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value
