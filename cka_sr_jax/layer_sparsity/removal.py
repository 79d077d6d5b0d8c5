"""Layers chosen by a score instead of a penalty: which ReLU, or which residual block, goes first.

A score is small where a layer does little. The ReLU of the lowest score is made linear, which
merges its layer with the next (`remove_activation`); a residual block goes as a whole. Unlike
`merge_layers` this changes the function, so the network is trained again before the next removal.

  score                   source
  layer_entropies         EASIER: Quétu et al. 2024, arXiv 2404.18949
  cka_without_layers      Pons et al. 2024, arXiv 2405.17081, on chains: made here
  cka_without_blocks      the same, on residual blocks: theirs

The formulas are those of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from cka_sr_jax._paths import leaf_paths, matches, replace_leaves
from cka_sr_jax.layer_sparsity.chain import (
    Affine,
    Chain,
    apply_affine,
    check_chain,
    check_input,
    compose,
)
from cka_sr_jax.similarity import cka


def layer_entropies(chain: Chain, inputs: ArrayLike) -> Float[np.ndarray, " hidden"]:
    """How much the sign of each hidden layer's units varies, in bits: EASIER's score.

    With p the share of inputs on which a unit's value is above 0 before the ReLU,

      H = -p log2(p) - (1 - p) log2(1 - p),   0 where p is 0 or 1,

    and the score of a layer is the mean of H over its units. It is between 0 and 1, and 0 where
    each unit is always on or always off: the ReLU is linear on these inputs.

      >>> one, head = Affine(np.ones((1, 1)), np.ones(1)), Affine(np.ones((2, 1)), np.zeros(1))
      >>> both = Affine(np.array([[1.0, -1.0]]), np.zeros(2))
      >>> layer_entropies((one, both, head), np.array([[-2.0], [3.0]]))
      array([1. , 0.5], dtype=float32)

    Args:
      chain: with values, outside of jit.
      inputs: [n, in] or [n, h, w, in]; a convolution's channel counts at each position.

    Raises:
      ValueError: as `check_chain`, with values; no hidden layer; inputs that do not fit,
        or none.
    """
    _check(chain, inputs)
    return np.asarray(_entropies(tuple(chain), jnp.asarray(inputs)))


@jax.jit
def _entropies(chain: Chain, x: Array) -> Array:
    scores = []
    for layer in chain[:-1]:
        x = apply_affine(layer, x)
        p = jnp.mean(x > 0, axis=tuple(range(x.ndim - 1)))
        scores.append(jnp.mean(-_p_log2_p(p) - _p_log2_p(1 - p)))
        x = jax.nn.relu(x)
    return jnp.stack(scores)


def _p_log2_p(p: Array) -> Array:
    return jnp.where(p > 0, p * jnp.log2(jnp.where(p > 0, p, 1)), 0)


def cka_without_layers(chain: Chain, inputs: ArrayLike) -> Float[np.ndarray, " hidden"]:
    """1 - CKA between what the last layer is given with and without each hidden layer's ReLU.

    CKA is linear and biased, as in the source, which removes residual blocks (see
    `cka_without_blocks`); that a chain loses a ReLU, so that the layer merges, is made here. A
    layer of score 0 does nothing that the head could see beyond a rotation and a factor.

      >>> one, head = Affine(np.ones((1, 1)), np.ones(1)), Affine(np.ones((2, 1)), np.zeros(1))
      >>> both = Affine(np.array([[1.0, -1.0]]), np.zeros(2))
      >>> cka_without_layers((one, both, head), np.array([[1.0], [3.0]]))
      array([0., 0.], dtype=float32)

    Args and Raises: as `layer_entropies`. For n inputs it takes memory of the size n x n.
    """
    _check(chain, inputs)
    return np.asarray(_cka_without(tuple(chain), jnp.asarray(inputs)))


@jax.jit
def _cka_without(chain: Chain, x: Array) -> Array:
    def penultimate(linear: int | None) -> Array:
        h = x
        for j, layer in enumerate(chain[:-1]):
            h = apply_affine(layer, h)
            h = h if j == linear else jax.nn.relu(h)
        return h

    whole = penultimate(None)
    return jnp.stack([_distance(whole, penultimate(j)) for j in range(len(chain) - 1)])


def _distance(whole: Array, without: Array) -> Array:
    """1 - CKA, and 1 where nothing varies any more."""
    return jnp.clip(1 - cka(whole, without, debiased=False), 0, 1)


def cka_without_blocks(
    features: Callable[[Any, Any], Array],
    params: Any,
    blocks: str | Sequence[str],
    inputs: Any,
) -> dict[str, float]:
    """{block: 1 - CKA(F, F without the block)} for residual blocks: Pons et al.'s score.

    "Without" sets all parameters of a block to 0, so that its shortcut alone is left. CKA is linear
    and biased. F are the features that the head is given.

      >>> params = {"block0": {"kernel": jnp.eye(2)}, "block1": {"kernel": jnp.zeros((2, 2))}}
      >>> def features(params, x):
      ...     for block in ("block0", "block1"):
      ...         x = x + jax.nn.relu(x @ params[block]["kernel"])
      ...     return x
      >>> x = jnp.array([[1.0, 0.0], [-2.0, 1.0], [0.5, 3.0]])
      >>> {block: round(score, 3) for block, score in
      ...  cka_without_blocks(features, params, ["block0", "block1"], x).items()}
      {'block0': 0.082, 'block1': 0.0}

    Args:
      features: `(params, inputs) -> [n, ...]`, the features before the head, in inference mode.
      params: the model's parameters.
      blocks: a path pattern for each block; its shortcut must be the identity, or go too.
      inputs: what `features` takes, n of them; memory of the size n x n is needed.

    Raises:
      ValueError: a pattern that matches no parameter; features that are not finite.
    """
    whole, distance = None, jax.jit(_distance)
    run, scores = jax.jit(features), {}
    for block in (blocks,) if isinstance(blocks, str) else blocks:
        zeros = {
            path: jnp.zeros_like(leaf) for path, leaf in leaf_paths(params) if matches(block, path)
        }
        if not zeros:
            raise ValueError(
                f"blocks pattern {block!r} matches no parameter: the paths are such as "
                f"{', '.join(path for path, _ in leaf_paths(params)[:3])}."
            )
        whole = run(params, inputs) if whole is None else whole
        scores[block] = float(distance(whole, run(replace_leaves(params, zeros), inputs)))
        if not np.isfinite(scores[block]):
            raise ValueError(
                f"the features with or without {block!r} are not finite: pass parameters and "
                "inputs that are."
            )
    return scores


def remove_activation(chain: Chain, layer: int) -> tuple[Affine, ...]:
    """The chain with a hidden layer's ReLU made linear, and the layer merged with the next one.

    One layer fewer. It is the same function on inputs where the layer's values are not negative
    before the ReLU, and another one elsewhere.

      >>> one = Affine(np.ones((1, 1)), np.zeros(1))
      >>> len(remove_activation((one, one, one), 0))
      2

    Raises:
      ValueError: as `check_chain`; a layer that is not a hidden one.
    """
    check_chain(chain)
    if not 0 <= layer < len(chain) - 1:
        raise ValueError(
            f"layer={layer} is not a hidden layer: this chain of {len(chain)} layers has "
            f"{f'0 to {len(chain) - 2}' if len(chain) > 1 else 'none'}."
        )
    return (*chain[:layer], compose(chain[layer], chain[layer + 1]), *chain[layer + 2 :])


def _check(chain: Chain, inputs: ArrayLike) -> None:
    check_chain(chain, values=True)
    check_input(chain, inputs)
    if len(chain) < 2:
        raise ValueError("the chain has no hidden layer, so there is none to score.")
    if not np.shape(inputs)[0]:
        raise ValueError("there are no inputs: pass examples of what the network is applied to.")
