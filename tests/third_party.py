"""A model that knows nothing of this package, as in Flax's MNIST example."""

import flax.linen as nn


class CNN(nn.Module):
    """Two convolutions with pooling and two dense layers."""

    @nn.compact
    def __call__(self, x):
        """Logits [b, 10] of images [b, 28, 28, 1]."""
        x = nn.relu(nn.Conv(features=32, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(features=64, kernel_size=(3, 3))(x))
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(features=256)(x))
        return nn.Dense(features=10)(x)
