"""Chains to test with, and naive NumPy oracles."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from cka_sr_jax.layer_sparsity import Affine

X = jax.random.normal(jax.random.key(1), (5, 6))


IMAGES = jax.random.normal(jax.random.key(2), (2, 7, 7, 3))


def conv(x, kernel):
    """VALID cross-correlation of stride 1, position by position."""
    kh, kw = kernel.shape[:2]
    rows, columns = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    y = np.zeros((len(x), rows, columns, kernel.shape[3]), x.dtype)
    for i in range(rows):
        for j in range(columns):
            y[:, i, j] = np.tensordot(x[:, i : i + kh, j : j + kw], kernel, 3)
    return y


def forward(chain, x):
    for i, (kernel, bias) in enumerate(chain):
        x = (x @ kernel if kernel.ndim == 2 else conv(x, kernel)) + bias
        x = np.maximum(x, 0) if i < len(chain) - 1 else x
    return x


def relative_error(y, expected):
    return np.linalg.norm(y - expected) / max(np.linalg.norm(expected), 1e-30)


def random_chain(rng, dtype, sizes, taps=None, bias=True, clear=False):
    """Gaussian layers, each made non-negative with probability 1/2.

    clear: the others get a unit with negative weights only, which stays negative in any product
    with non-negative weights below.
    """
    chain = []
    for i, shape in enumerate(itertools.pairwise(sizes)):
        shape = (*taps[i], *shape) if taps is not None else shape
        kernel = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        b = rng.normal(size=shape[-1]) * bias
        if rng.random() < 0.5:
            kernel, b = abs(kernel), abs(b)
        elif clear:
            kernel[..., 0] = -abs(kernel[..., 0])
        chain.append(Affine(kernel.astype(dtype), b.astype(dtype)))
    return tuple(chain)


def in_float64(chain):
    return [Affine(*(array.astype(np.float64) for array in layer)) for layer in chain]


def naive_norm(*arrays):
    return sum(min(float(v), 0.0) ** 2 for a in arrays for v in np.ravel(a)) ** 0.5


def random_jax_chain(seed, sizes=(4, 5, 6, 3, 2)):
    rng = np.random.default_rng(seed)
    shapes = itertools.pairwise(sizes)
    return tuple(
        Affine(
            jnp.asarray(rng.normal(size=s), jnp.float32),
            jnp.asarray(rng.normal(size=s[1]), jnp.float32),
        )
        for s in shapes
    )


def randomized(variables):
    """Every parameter and statistic moved away from its 0 or 1."""
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.uniform(0.2, 1, x.shape), x.dtype), variables)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(jnp.max(jnp.abs(b))))
