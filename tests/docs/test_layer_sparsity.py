"""The training loop of docs/layer_sparsity.md runs as it stands, and merges layers exactly."""

import re
from pathlib import Path

import numpy as np

DOCS = (Path(__file__).parents[2] / "docs" / "layer_sparsity.md").read_text()


def test_the_training_loop_of_the_docs_runs():
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if "layer_prox" in b)
    scope = {}
    exec(compile(block, "layer_sparsity.md", "exec"), scope)
    assert len(scope["merged"]) == 2  # of 4 layers
    expected = scope["model"].apply(scope["variables"], scope["x"])
    np.testing.assert_allclose(scope["outputs"], expected, rtol=1e-4, atol=1e-4)


def test_the_residual_network_of_the_docs_loses_a_block(capsys):
    (block, output), *_ = re.findall(
        r"```python\n((?:(?!```).)*branch_prox.*?)```\n\n```text\n(.*?)```", DOCS, re.DOTALL
    )
    exec(compile(block, "layer_sparsity.md", "exec"), {})
    assert capsys.readouterr().out == output
