"""The weights and masks of a finished run."""

import shutil

import jax
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import leaf_paths
from cka_sr_jax.training import Checkpoints, load_variables, load_weights
from tests.training.runs import arrays


def made_up(workdir, rule, tree, select="last"):
    """A checkpoint of a run with this rule."""
    (workdir / "config.json").write_text("{}")
    checkpoints = Checkpoints(workdir, config={"sparsity.rule": rule, "eval.select": select})
    checkpoints.save(1, tree)
    checkpoints.close()


def test_the_masks_are_those_of_the_weights(finished):
    variables, masks = load_weights(finished[0])
    jax.tree.map(np.testing.assert_array_equal, variables, load_variables(finished[0]))
    stored = arrays(finished[0])
    assert isinstance(masks["head"]["bias"], optax.MaskedNode)
    found = dict(leaf_paths(masks))
    assert len(found) == 4
    for path, mask in found.items():
        key = path.replace("/", ".")
        np.testing.assert_array_equal(mask, stored[f"state.opt_state.masks.{key}"])


def test_the_best_weights_have_the_masks_of_their_time(tmp_path):
    one, two = np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 2.0]], np.float32)
    last = {
        "params": {"head": {"kernel": one}},
        "opt_state": {"masks": {"head": {"kernel": one > 0}}},
    }
    best = {"params": {"head": {"kernel": two}}, "masks": {"head": {"kernel": two > 0}}}
    made_up(tmp_path, "rigl", {"state": last, "best": best}, "best-validation")
    variables, masks = load_weights(tmp_path)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], two)
    np.testing.assert_array_equal(masks["head"]["kernel"], two > 0)


def test_a_dense_run_has_no_masks(tmp_path):
    made_up(tmp_path, "dense", {"state": {"params": {"head": {"kernel": np.ones((1, 2))}}}})
    assert jax.tree.leaves(load_weights(tmp_path)[1]) == []


def test_a_missing_last_checkpoint_of_a_finished_run_is_told(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    told = []
    load_weights(workdir, told.append)
    assert told == []
    steps = Checkpoints(workdir).steps()
    shutil.rmtree(workdir / "checkpoints" / str(steps[-1]))
    with pytest.warns(UserWarning, match=rf"no checkpoint of step {steps[-1]}, .* step {steps[0]}"):
        load_variables(workdir)
    (workdir / "result.json").write_text("{")  # tells nothing
    load_weights(workdir, told.append)
    assert told == []
