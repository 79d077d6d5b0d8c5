"""Layer sparsity as an experiment: fit along a path of strengths, merge layers, refit, compare."""

from cka_sr_jax.workflows.layer_sparsity.experiment import prepare, run, show_finished

__all__ = ["prepare", "run", "show_finished"]
