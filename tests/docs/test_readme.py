"""The README's Python blocks run as they stand, and are as short as it says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from cka_sr_jax.sparsity import get_masks, leaf_paths

README = (Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: str(BLOCKS.index(block)))
def test_block_runs(block):
    scope = {}
    exec(compile(block, "README.md", "exec"), scope)
    if "opt_state" not in scope:
        assert scope["matrix"].shape == (2, 2)
        return
    masks = get_masks(scope["opt_state"])
    masks = dict(leaf_paths(masks["weights"] if "trained" in scope else masks))
    values = dict(leaf_paths(scope["params"]))
    assert masks
    for path, mask in masks.items():
        assert not np.asarray(values[path])[~np.asarray(mask)].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(scope["params"]))


def test_blocks_train_in_under_twenty_lines():
    """Not counting imports."""
    training = [block for block in BLOCKS if "sparsify" in block]
    assert len(training) == 3
    for block in training:
        lines = [line for line in block.splitlines() if line.strip() and "import" not in line]
        assert len(lines) < 20, len(lines)
