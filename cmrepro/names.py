"""One-line error texts for names that are not known (standard library only)."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str], listed_by: str = "") -> str:
    """The text of the error for an unknown name: what was got, the nearest, all known ones.

    Args:
        kind: What was looked up, e.g. "recipe".
        name: What was asked for.
        known: Every allowed name.
        listed_by: A command that lists them, where they are too many for a line: then the three
            nearest are named only.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=3 if listed_by else 1, cutoff=0.5)
    quoted = ", ".join(f"'{one}'" for one in nearest)
    hint = f"did you mean {quoted}? " if nearest else ""
    if listed_by and names:
        return f"unknown {kind} '{name}': {hint}{len(names)} are known; '{listed_by}' lists them"
    return f"unknown {kind} '{name}': {hint}known: {', '.join(names) or 'none'}"
