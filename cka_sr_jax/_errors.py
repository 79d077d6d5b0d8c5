"""The sentence for a name that does not exist."""

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """One sentence that names the value and the nearest known name or, if none is near, all.

    >>> unknown("rule", "rts", ["rst", "rigl"])
    "Unknown rule 'rts': did you mean 'rst'?"
    >>> unknown("rule", "adam", ["rst", "rigl"])
    "Unknown rule 'adam': expected one of rigl, rst."
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    if near:
        return f"Unknown {what} {str(value)!r}: did you mean {near[0]!r}?"
    expected = f"expected one of {', '.join(names)}" if names else "there are none"
    return f"Unknown {what} {str(value)!r}: {expected}."
