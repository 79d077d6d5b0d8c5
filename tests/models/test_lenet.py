"""LeNet-5's names, features and size."""

import pytest

from cka_sr_jax.models import LeNet5, create_model
from tests.models.shapes import count, feature_shapes, init_shapes


def test_lenet5():
    model = create_model("lenet5", 10)
    variables = init_shapes(model, (28, 28, 1))
    assert count(variables) == 61_706
    assert set(variables["params"]) == {"conv1", "conv2", "dense1", "dense2", "head"}
    assert feature_shapes(model, (28, 28, 1)) == {
        "conv": ((2, 28, 28, 6), (2, 10, 10, 16)),
        "dense": ((2, 120), (2, 84)),
    }
    assert feature_shapes(model, (32, 32, 3))["conv"] == ((2, 32, 32, 6), (2, 12, 12, 16))
    with pytest.raises(ValueError, match="12x12"):
        init_shapes(LeNet5(num_classes=10), (8, 8, 1))
