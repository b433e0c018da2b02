"""One-line error texts for names that are not known (standard library only)."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The text of the error for an unknown name: what was got, the nearest, all known ones.

    Args:
        kind: What was looked up, e.g. "recipe".
        name: What was asked for.
        known: Every allowed name.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"unknown {kind} '{name}': {hint}known: {', '.join(names) or 'none'}"
