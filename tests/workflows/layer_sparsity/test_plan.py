"""The plan of a path."""

import pytest

from cka_sr_jax.training import ConfigError
from cka_sr_jax.workflows import layer_sparsity
from tests.workflows.layer_sparsity.small import small_config


def test_without_strengths_there_is_no_path():
    with pytest.raises(ConfigError, match="strengths is empty, which is an ordinary run"):
        layer_sparsity.prepare(small_config(layer_sparsity__strengths=()))
