"""The examples of the library, the models and `export` run and give what they show."""

import doctest
import importlib
import pkgutil

import jax
import pytest

import cka_sr_jax

PARTS = (
    *("_dtypes", "_errors", "_paths", "accounting", "layer_sparsity", "similarity", "sparsity"),
    *("export", "models"),
)
MODULES = [
    module.name
    for module in pkgutil.walk_packages(cka_sr_jax.__path__, "cka_sr_jax.")
    if module.name.split(".")[1] in PARTS
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    # JAX's own settings, as a reader has them.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        failed, _ = doctest.testmod(module)
    assert failed == 0
