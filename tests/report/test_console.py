"""The table in the terminal: what a reader sees."""

import jax
import numpy as np
import optax
from rich.console import Console

from cka_sr_jax.accounting import layer_rows
from cka_sr_jax.report import console_table


def test_console_table_shows_kernels_one_line_of_vectors_and_the_total():
    params = {
        "block10": {"kernel": np.ones((4, 2))},
        "block2": {"kernel": np.ones((2, 3)), "bias": np.ones(3)},
    }
    masks = jax.tree.map(lambda _: optax.MaskedNode(), params)
    rows = layer_rows(params, masks, {"block10/kernel": 5000})
    console = Console(width=120)
    with console.capture() as capture:
        console.print(console_table(rows))
    text = capture.get()
    assert "block10/kernel" in text
    assert "80,000" in text
    assert "block2/bias" not in text
    assert "vectors (1)" in text
    assert "total" in text
