"""`scildm verify`."""

import argparse
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sciLDM.cli._console import out
from sciLDM.cli._parser import UsageError
from sciLDM.registry import load_domain

__all__ = ["Verification", "VerifiesFiles", "run"]


@runtime_checkable
class Verification(Protocol):
    """What a domain finds out about a file."""

    @property
    def synthetic(self) -> bool:
        """Whether anything marks it as synthetic."""
        ...

    def lines(self) -> Sequence[str]:
        """What was found, for people."""
        ...


@runtime_checkable
class VerifiesFiles(Protocol):
    """A domain that can tell its own outputs from measurements."""

    def verify_file(self, path: str, key: str | None = None) -> Verification:
        """Read the marks of a file; look for a key's watermark. A static method of the domain's class."""
        ...


def run(args: argparse.Namespace) -> int:
    """Say what marks the file; 1 when nothing does."""
    domain = load_domain(args.domain)
    if not isinstance(domain, VerifiesFiles):
        raise UsageError(f"the domain {args.domain} marks no files")
    if args.key == "":
        raise UsageError("--key: expected a key, got an empty text")
    found = domain.verify_file(args.file, args.key)
    for line in found.lines():
        out(line)
    return 0 if found.synthetic else 1
