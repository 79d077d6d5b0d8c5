"""The examples in the library's docstrings run and give what they show."""

import doctest
import importlib
import pkgutil

import pytest

import cka_sr_jax

LIBRARY = ("_errors", "_paths", "accounting", "layer_sparsity", "similarity", "sparsity")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(cka_sr_jax.__path__, "cka_sr_jax.")
    if module.name.split(".")[1] in LIBRARY
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0
