"""Figures out of what a user has at hand in a script or a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cka_sr_jax.report.figures import Figure, cka_heatmap
from cka_sr_jax.similarity import CKAMatrix, cka_matrix, distinct


def plot_cka(features: Any, *, samples: int | None = None) -> Figure:
    """A heat map of the debiased CKA between all features, with lines between the stages.

      plot_cka(sown["features"])  # of one batch
      plot_cka(compare_cka(model, variables, batches))  # of a data set

    A notebook shows the figure; `plot_cka(...).savefig("cka.png")` writes it.

    Args:
      features: as for `cka_penalty`: a mapping {stage: features}, as sown, or a list of features,
        all arrays [n, ...] of the same n samples. Or a `CKAMatrix` of `compare_cka`.
      samples: use the first `samples`; None takes all.

    Raises:
      ValueError: as `cka_matrix`; `samples` with a `CKAMatrix`.
    """
    if isinstance(features, CKAMatrix):
        if samples is not None:
            raise ValueError(
                f"samples={samples} comes too late for a CKA matrix: pass fewer inputs to "
                "compare_cka."
            )
        return cka_heatmap(np.asarray(features.values), features.names, features.stages)
    matrix = np.asarray(cka_matrix(features, samples=samples))
    if not isinstance(features, Mapping):
        return cka_heatmap(matrix)
    stages = [str(stage) for stage, part in features.items() for _ in jax.tree.leaves(part)]
    return cka_heatmap(matrix, distinct(stages), stages)
