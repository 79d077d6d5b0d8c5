"""The sentence for a name that does not exist."""

import difflib
from collections.abc import Iterable


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """One sentence that names the value and the nearest known name or, if none is near, all.

    >>> unknown("model", "mpl", ["mlp", "lenet5"])
    "Unknown model 'mpl': did you mean 'mlp'?"
    >>> unknown("model", "transformer", ["mlp", "lenet5"])
    "Unknown model 'transformer': expected one of lenet5, mlp."
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    if near:
        return f"Unknown {what} {str(value)!r}: did you mean {near[0]!r}?"
    expected = f"expected one of {', '.join(names)}" if names else "there are none"
    return f"Unknown {what} {str(value)!r}: {expected}."
