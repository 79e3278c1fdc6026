"""Names near to a wrong one."""

import difflib
from collections.abc import Iterable

__all__ = ["near"]


def near(wrong: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` when something known is similar or ends so, whatever its case; else an empty string."""
    folded = {name.lower(): name for name in known}
    wrong = wrong.lower()
    if ends := [name for low, name in folded.items() if low.endswith(f".{wrong.lstrip('-')}")]:
        return f"; did you mean {' or '.join(ends[:3])}?"
    found = difflib.get_close_matches(wrong, folded, n=3, cutoff=0.55)
    best = difflib.SequenceMatcher(a=wrong, b=found[0]).ratio() if found else 0.0
    found = [name for name in found if difflib.SequenceMatcher(a=wrong, b=name).ratio() > best - 0.08]
    return f"; did you mean {' or '.join(folded[name] for name in found)}?" if found else ""
