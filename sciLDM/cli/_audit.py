"""`scildm audit`."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from sciLDM.cli._console import note, out, print_table
from sciLDM.cli._parser import UsageError
from sciLDM.registry import load_domain

__all__ = ["AuditsCases", "run"]


@runtime_checkable
class AuditsCases(Protocol):
    """A domain that can compare groups of cases."""

    def audit_cases(
        self, cases: str, groups: str | None, by: Sequence[str], output: str | None = None
    ) -> Mapping[str, Any]:
        """By task: `rows`, `tests` and `notes`. A static method of the domain's class."""
        ...


def run(args: argparse.Namespace) -> None:
    """Print groups, the worst ones and what chance explains."""
    domain = load_domain(args.domain)
    if not isinstance(domain, AuditsCases):
        raise UsageError(f"the domain {args.domain} audits no cases")
    found = domain.audit_cases(args.cases, args.groups, args.by, args.output)
    for task, audit in found.items():
        columns = ("attribute", "group", "metric", "volumes", "value", "lower", "upper")
        print_table(audit.rows, columns, title=task)
        if audit.tests:
            print_table(audit.tests, ("attribute", "metric", "worst", "gap", "p", "p_holm"))
        for line in audit.notes:
            out(f"note: {line}")
    if args.output is not None:
        note(f"written: {args.output}")
