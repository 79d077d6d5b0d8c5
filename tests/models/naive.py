"""What the models compute, by definition, in NumPy and float64."""

import numpy as np


def naive_conv(x, kernel, stride, padding):
    """Cross-correlation by its definition: NHWC image, HWIO kernel, zeros around."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height, width = ((s - size) // stride + 1 for s in x.shape[1:3])
    out = np.zeros((len(x), height, width, kernel.shape[-1]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + size, j * stride : j * stride + size, :]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", patch, kernel)
    return out


def naive_norm(x, params, stats, train):
    """Normalized x, and the running statistics after it."""
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    y = (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    if not train:
        return y, stats
    return y, {
        "mean": 0.9 * stats["mean"] + 0.1 * mean,
        "var": 0.9 * stats["var"] + 0.1 * var,
    }


def naive_max_pool(x, size, stride, padding):
    """The largest of each window; what lies outside of the image counts as -infinity."""
    around = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = np.pad(x, around, constant_values=-np.inf)
    height, width = ((s - size) // stride + 1 for s in x.shape[1:3])
    out = np.zeros((len(x), height, width, x.shape[-1]))
    for i in range(height):
        for j in range(width):
            window = x[:, i * stride : i * stride + size, j * stride : j * stride + size, :]
            out[:, i, j] = window.max((1, 2))
    return out


def relu(x):
    return np.maximum(x, 0)


class NaiveLayers:
    """Layers by name from a module's variables; `after` holds the statistics after them."""

    def __init__(self, variables, train):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.train, self.after = train, {}

    def __contains__(self, name):
        return name in self.params

    def conv(self, x, name, stride=1, padding=0):
        assert set(self.params[name]) == {"kernel"}
        return naive_conv(x, self.params[name]["kernel"], stride, padding)

    def norm(self, x, name):
        y, self.after[name] = naive_norm(x, self.params[name], self.stats[name], self.train)
        return y

    def dense(self, x, name):
        return x @ self.params[name]["kernel"] + self.params[name]["bias"]

    def inside(self, name):
        """The layers of a submodule."""
        variables = {"params": self.params[name], "batch_stats": self.stats[name]}
        inner = NaiveLayers(variables, self.train)
        self.after[name] = inner.after
        return inner


def naive_shortcut(layers, x, stride):
    if "shortcut_conv" not in layers:
        return x
    return layers.norm(layers.conv(x, "shortcut_conv", stride), "shortcut_bn")


def naive_residual(layers, x, stride):
    y = relu(layers.norm(layers.conv(x, "conv1", stride, 1), "bn1"))
    y = layers.norm(layers.conv(y, "conv2", 1, 1), "bn2")
    return relu(naive_shortcut(layers, x, stride) + y)


def naive_bottleneck(layers, x, stride):
    y = relu(layers.norm(layers.conv(x, "conv1"), "bn1"))
    y = relu(layers.norm(layers.conv(y, "conv2", stride, 1), "bn2"))
    y = layers.norm(layers.conv(y, "conv3"), "bn3")
    return relu(naive_shortcut(layers, x, stride) + y)


def naive_preactivation(layers, x, stride):
    a = relu(layers.norm(x, "bn1"))
    y = relu(layers.norm(layers.conv(a, "conv1", stride, 1), "bn2"))
    y = layers.conv(y, "conv2", 1, 1)
    return y + (layers.conv(a, "shortcut_conv", stride) if "shortcut_conv" in layers else x)
