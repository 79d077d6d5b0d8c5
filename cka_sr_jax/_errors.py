"""The sentence for a name that does not exist."""

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """One sentence: `value` is no known `what`, the nearest name if one is near, and all names."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Unknown {what} {str(value)!r}.{hint} Known: {', '.join(names)}."
