"""Which weights the masks keep, checked: what every sparse format stores."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from cka_sr_jax._paths import leaf_paths
from cka_sr_jax.sparsity.masks import Masks, check_masks


class Kept(NamedTuple):
    """A masked leaf on the host: its weights, and which of them are kept, both of its shape."""

    weights: np.ndarray
    mask: np.ndarray

    @property
    def values(self) -> np.ndarray:
        """The kept weights [k], in the order of the flat array."""
        return self.weights[self.mask]


def kept_weights(params: Any, masks: Masks) -> dict[str, Kept]:
    """{path: `Kept`} of the masked leaves.

    >>> import optax
    >>> params = {"kernel": np.array([[0.0, 2.0]]), "bias": np.ones(2)}
    >>> masks = {"kernel": np.array([[False, True]]), "bias": optax.MaskedNode()}
    >>> {path: kept.values.tolist() for path, kept in kept_weights(params, masks).items()}
    {'kernel': [2.0]}

    Raises:
      ValueError: the masks lack the structure or the shapes of the parameters; a weight that they
        do not keep is not 0, so they are of other parameters.
    """
    check_masks(params, masks)
    leaves = dict(leaf_paths(params))
    found = {}
    for path, mask in leaf_paths(masks):
        kept = Kept(np.asarray(leaves[path]), np.asarray(mask, bool))
        if others := np.count_nonzero(kept.weights[~kept.mask]):
            raise ValueError(
                f"{others} weights of {path} that the masks do not keep are not 0: pass the masks "
                "of these parameters, or apply_masks(params, masks)."
            )
        found[path] = kept
    return found
