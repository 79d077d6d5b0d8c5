"""What the table of fields says of one field, and whether a value fits it."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from cka_sr_jax._errors import unknown

_ONE = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
_SEVERAL = {int: "whole numbers", float: "numbers", str: "strings"}


class Range(NamedTuple):
    """An interval, written as in mathematics: "[0, 1)" holds 0 and all below 1."""

    low: float
    high: float
    low_open: bool
    high_open: bool

    @staticmethod
    def parse(text: str) -> Range:
        """The range of a text such as "(0, 1]" or "[1, inf)"."""
        parts = re.fullmatch(r"([\[(])(\S+), (\S+)([\])])", text)
        if parts is None:
            raise ValueError(f"{text!r}: expected a range, such as '(0, 1]' or '[1, inf)'.")
        return Range(float(parts[2]), float(parts[3]), parts[1] == "(", parts[4] == ")")

    def __contains__(self, value: object) -> bool:
        """Whether a number lies inside."""
        assert isinstance(value, int | float)
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of the config.

    Attributes:
      default: None where the field may be unset; it then needs a `kind`.
      meaning: one plain sentence.
      kind: the type of its values.
      items: the type of a tuple's entries.
      unit: what a number counts or measures, such as "steps" or "share of the run".
      within: the range of a number, or of each number of a tuple, such as "(0, 1]".
      choices: the strings that it may be; (): any.
      increasing: whether a tuple's numbers must grow from one to the next.
      example: a value for messages; None: the default.
      needs: what else has to be set for it to work.
      resumable: whether it may differ when a run is resumed, as it changes nothing computed.
    """

    default: Any
    meaning: str
    _: dataclasses.KW_ONLY
    kind: type = object
    items: type = float
    unit: str = ""
    within: str = "(-inf, inf)"
    choices: Sequence[str] = ()
    increasing: bool = False
    example: Any = None
    needs: str = ""
    resumable: bool = False

    def __post_init__(self) -> None:
        """Take the type from the default, unless that is None."""
        if self.default is not None:
            object.__setattr__(self, "kind", type(self.default))

    @property
    def expected(self) -> str:
        """What a value has to be, as in "a share of the run in (0, 1]"."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is tuple:
            numbers = f" {self.limits}" if self.limits else ""
            order = ", increasing" if self.increasing else ""
            return f"{self._noun(_SEVERAL[self.items], 'shares')}{numbers}{order}"
        separator = "" if not self.limits or self.limits.startswith(("in ", "above ")) else ","
        limits = f"{separator} {self.limits}" if self.limits else ""
        return f"{self._noun(_ONE.get(self.kind, 'a group of fields'), 'a share')}{limits}"

    @property
    def shown_default(self) -> str:
        """The default as on the command line."""
        if self.default in ("", {}):
            return ""
        return "none" if self.default is None else str(self.default)

    @property
    def limits(self) -> str:
        """The range in words: "in [0, 1)", "at least 1", "above 0"; "" where any number will do."""
        low, high, low_open, _ = Range.parse(self.within)
        if high < math.inf:
            return f"in {self.within}"
        if low > -math.inf:
            return f"above {low:g}" if low_open else f"at least {low:g}"
        return ""

    def problem(self, name: str, value: Any) -> str | None:
        """The sentence that says why the value cannot be, or None."""
        if value is None and self.default is None:
            return None
        shown = tuple(value) if isinstance(value, list) else value
        if not self._has_type(value):
            meaning = self.meaning[0].lower() + self.meaning[1:].rstrip(".")
            return f"{name}={shown!r}: expected {self.expected}{self._such_as()} ({meaning})."
        if self.choices:
            return None if value in self.choices else unknown(name, value, self.choices)
        numbers = value if self.kind is tuple else [value]
        if self.items is str or not isinstance(numbers[0] if numbers else "", int | float):
            return None
        if not all(math.isfinite(number) for number in numbers):
            finite = "finite numbers" if self.kind is tuple else "a finite number"
            return f"{name}={shown!r}: expected {finite}{self._such_as()}."
        increasing = all(a < b for a, b in itertools.pairwise(numbers))
        inside = all(number in Range.parse(self.within) for number in numbers)
        if inside and (increasing or not self.increasing):
            return None
        return f"{name}={shown!r}: expected {self.expected}{self._such_as()}."

    def _has_type(self, value: Any) -> bool:
        if self.kind is tuple:
            return isinstance(value, list | tuple) and all(_is(v, self.items) for v in value)
        return _is(value, self.kind)

    def _such_as(self) -> str:
        example = self.default if self.example is None else self.example
        if example in (None, "", ()) or self.choices or self.kind in (bool, dict):
            return ""
        return f", such as {example!r}"

    def _noun(self, plain: str, share: str) -> str:
        if self.unit.startswith("share"):
            return f"{share}{self.unit.removeprefix('share')}"
        return f"{plain} of {self.unit}" if self.unit else plain


def _is(value: Any, kind: type) -> bool:
    """Whether the value has the type; a whole number is a float too, True is no number."""
    allowed: Any = (int, float) if kind is float else kind
    return isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
