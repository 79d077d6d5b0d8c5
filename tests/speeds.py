"""Which cells of a test the gate runs, and which only `make test-slow` does."""

import pytest


def fast_among(cells, *fast):
    """The cells as parameters, all but `fast` marked slow."""
    cells = list(cells)
    assert set(fast) <= set(cells)
    return [
        pytest.param(
            *(cell if isinstance(cell, tuple) else (cell,)),
            id="-".join(map(str, cell)) if isinstance(cell, tuple) else str(cell),
            marks=() if cell in fast else pytest.mark.slow,
        )
        for cell in cells
    ]
