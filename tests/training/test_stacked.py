"""Runs of a model whose blocks are stacked in one array, as `nn.scan` makes them."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.analysis import open_run
from cka_sr_jax.analysis.figures import kept_weights
from cka_sr_jax.data import load_dataset, normalize
from cka_sr_jax.models import vit
from cka_sr_jax.sparsity import leaf_paths
from cka_sr_jax.training import load_weights, new_state
from cka_sr_jax.training.build import image_statistics
from cka_sr_jax.training.loop import prepare
from cka_sr_jax.workflows import run
from tests.speeds import fast_among
from tests.training.runs import small_config

BLOCK_KERNELS = ("query", "key", "value", "out", "up", "down")
METHODS = ["rst", "rigl", "gmp", "snip", "synflow", "dst", "str", "lottery"]


@pytest.fixture(autouse=True)
def small_vit(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "micro", (16, 3, 2))


def scanned_config(method):
    config = small_config(model__name="vit-micro", penalty__every=1)
    config.model.options = ConfigDict({"patch": 4, "scan": True})
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 1e-3
    if method == "lottery":
        config.lottery.rounds, config.sparsity.rule = 1, "dense"
    else:
        config.sparsity.rule = method
    if method == "dst":
        config.sparsity.alpha = 1e-3
    if method == "synflow":
        config.sparsity.rounds = 3
    if method in ("rigl", "gmp"):
        config.sparsity.update_every = 10
    if method == "rigl":
        config.sparsity.distribution = "uniform"
    return config


@pytest.mark.parametrize("method", fast_among(METHODS, "rigl", "snip", "str"))
def test_a_run_stores_what_it_measured(method, tmp_path):
    config = scanned_config(method)
    result = run(config, tmp_path, Console(file=io.StringIO()))
    folder = tmp_path / "round01" if method == "lottery" else tmp_path
    variables, masks = load_weights(folder)
    pruned = dict(leaf_paths(masks))
    assert {path.split("/")[-2] for path in pruned} >= set(BLOCK_KERNELS)
    assert pruned["block/up/kernel"].shape == (3, 16, 64)
    kept = sum(int(mask.sum()) for mask in pruned.values())
    size = sum(mask.size for mask in pruned.values())
    assert result["density"] == pytest.approx(kept / size, abs=1e-6)
    weights = dict(leaf_paths(variables["params"]))
    for path, mask in pruned.items():
        assert not np.any(np.where(mask, 0, weights[path]))
    found = open_run(folder)
    dataset = load_dataset(config.data)
    images = normalize(jnp.asarray(dataset.test_images), *image_statistics(config, dataset))
    logits = found.model.apply(variables, images, train=False)
    accuracy = float(np.mean(np.argmax(logits, -1) == dataset.test_labels))
    assert accuracy == pytest.approx(found.result["test"]["accuracy"], abs=1e-6)
    assert len(kept_weights(found)) <= kept
    if method == "rigl":  # whose layers have one density
        for path in (path for path in pruned if path.startswith("block/")):
            each = pruned[path].reshape(3, -1).sum(1)
            assert np.ptp(each) <= 1


def test_rescaled_weights_keep_the_norm_of_each_unit_of_each_block():
    config = scanned_config("rst")
    config.sparsity.rescale = True
    params = new_state(prepare(config)).params["block"]["up"]["kernel"]
    config.sparsity.rescale = False
    config.sparsity.rule, config.sparsity.density = "dense", 1.0
    whole = new_state(prepare(config)).params["block"]["up"]["kernel"]
    norms = np.linalg.norm(params, axis=1), np.linalg.norm(whole, axis=1)
    alive = norms[0] > 0
    assert alive.mean() > 0.5
    np.testing.assert_allclose(norms[0][alive], norms[1][alive], rtol=1e-4)


def test_a_block_that_keeps_no_weight_is_announced(tmp_path):
    config = scanned_config("snip")  # ranks all layers together
    config.sparsity.density = 1e-3
    config.train.steps = 1
    console = Console(file=io.StringIO(), width=1000)
    run(config, tmp_path, console)
    assert (
        "a layer of block/attention/key/kernel"
        in console.file.getvalue().split("keeps no weight")[0]
    )


@pytest.mark.slow
def test_the_cost_is_that_of_the_network_without_scan(tmp_path):
    results = []
    for scan in (True, False):
        config = scanned_config("dense")
        config.sparsity.rule, config.sparsity.density = "dense", 1.0
        config.model.options.scan, config.train.steps = scan, 1
        results.append(run(config, tmp_path / str(scan), Console(file=io.StringIO())))
    assert results[0]["flops"] == results[1]["flops"] > 0
    assert results[0]["parameters"] == results[1]["parameters"]
