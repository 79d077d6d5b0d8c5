"""The sentence for a name that does not exist."""

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """One sentence: `value` is no known `what`, and the nearest name or, if none is near, all."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    if near:
        return f"Unknown {what} {str(value)!r}: did you mean {near[0]!r}?"
    expected = f"expected one of {', '.join(names)}" if names else "it has none"
    return f"Unknown {what} {str(value)!r}: {expected}."
