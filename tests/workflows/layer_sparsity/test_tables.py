"""Tables of the path and of the networks, on terminals of any width."""

import io

import pytest
from rich.console import Console

from cka_sr_jax.workflows.layer_sparsity.tables import (
    Network,
    networks_table,
    path_table,
    print_table,
)


@pytest.mark.parametrize("width", [40, 80])
def test_no_number_of_the_tables_is_cut(width):
    errors = dict.fromkeys(
        ("validation_error", "warm_validation_error", "cold_validation_error", "standard_error"),
        0.1234,
    )
    size = {"depth": 9, "multiply_adds": 217_000}
    network = Network(
        "oracle depth", 9, 8, [128] * 8, 218_034, 217_000, 216_000, 0.12, 0.13, 12345.0, 1.0
    )
    result = {
        "chosen_strength": 5.5, "chosen_merged": True, "chosen_start": "warm",
        "error": "squared error",
        "inference_batch": 2000, "device": "cpu", "networks": [network._asdict()],
        "path": [{"strength": 5.5, "active": range(8), **size, **errors}],
    }  # fmt: skip
    console = Console(width=width, file=io.StringIO())
    for table in (path_table, networks_table):
        text = table(result)._replace(title="")
        print_table(text, console)
        for cell in [*text.columns, *text.rows[0]]:
            assert cell in console.file.getvalue()
    if width == 80:
        assert max(map(len, console.file.getvalue().splitlines())) <= 80
