"""The MLP's names, features and size."""

import pytest

from cka_sr_jax.models import MLP, create_model
from tests.models.shapes import count, feature_shapes, init_shapes


def test_mlp():
    model = create_model("mlp", 10, hidden=(300, 200, 100))
    variables = init_shapes(model, (8, 8, 1))
    assert set(variables["params"]) == {"hidden0", "hidden1", "hidden2", "head"}
    assert feature_shapes(model, (8, 8, 1)) == {"hidden": ((2, 300), (2, 200), (2, 100))}
    assert count(init_shapes(MLP(num_classes=10), (28, 28, 1))) == 266_610  # LeNet-300-100


@pytest.mark.parametrize("hidden", [(0,), (3, -1)])
def test_a_layer_without_units_is_refused(hidden):
    with pytest.raises(ValueError, match=r"^hidden=\(.*\): expected 1 unit or more in each layer"):
        create_model("mlp", 10, hidden=hidden)
