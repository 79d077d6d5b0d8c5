"""JSON that a run stored, and that a disk or a hand may have damaged since."""

from __future__ import annotations

import json
from typing import Any

MOST_DIGITS = 18  # of an integer; 64 bits hold any of these


def parse_stored(text: str | bytes) -> Any:
    """What stored JSON says.

    Raises:
      ValueError: it is not JSON, its nesting is too deep, or an integer has more digits than any
        that a run writes.
    """
    try:
        return json.loads(text, parse_int=_integer)
    except RecursionError as error:
        raise ValueError("its nesting is too deep") from error


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits")
    return int(digits)
