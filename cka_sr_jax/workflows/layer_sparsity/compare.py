"""The networks of a layer-sparsity experiment side by side: size, errors, inference time."""

from __future__ import annotations

import numpy as np

from cka_sr_jax.layer_sparsity import active_layers
from cka_sr_jax.workflows.layer_sparsity.fit import Layers, estimate, fit
from cka_sr_jax.workflows.layer_sparsity.path import Point, multiply_adds
from cka_sr_jax.workflows.layer_sparsity.plan import PathPlan
from cka_sr_jax.workflows.layer_sparsity.tables import Network, inference_seconds
from cka_sr_jax.workflows.layer_sparsity.tasks import Task


def compare(plan: PathPlan, baseline: Point, chosen: Point) -> list[Network]:
    """The networks before and after, measured on test data now that the choice is made."""
    chains: dict[str, Layers] = {
        "no penalty": baseline.fitted,
        "fitted": chosen.fitted,
    }
    if chosen.has_merged:
        chains |= {
            "merged": chosen.merged,
            "refit, warm": chosen.warm,
            "refit, cold": chosen.cold,
        }
    if plan.task.teacher_layers is not None:
        oracle = plan.hidden[:1] * plan.task.teacher_layers
        chains["oracle depth"] = fit(plan, oracle)
    inputs = plan.task.test.inputs[: plan.config.eval.batch_size]
    seconds = inference_seconds(chains, inputs)
    return [
        _measure(plan.task, name, chain, seconds[name], seconds["no penalty"])
        for name, chain in chains.items()
    ]


def _measure(task: Task, name: str, chain: Layers, seconds: float, reference: float) -> Network:
    kernels = [np.asarray(layer.kernel) for layer in chain]
    return Network(
        name=name,
        depth=len(chain),
        active=len(active_layers(chain, nonnegative_input=task.nonnegative_input)),
        hidden=[kernel.shape[1] for kernel in kernels[:-1]],
        parameters=sum(kernel.size + kernel.shape[1] for kernel in kernels),
        multiply_adds=multiply_adds(chain),
        nonzero_multiply_adds=sum(int(np.count_nonzero(kernel)) for kernel in kernels),
        validation_error=estimate(task, chain, task.validation).mean,
        test_error=estimate(task, chain, task.test).mean,
        microseconds=seconds * 1e6,
        relative_time=seconds / reference,
    )
