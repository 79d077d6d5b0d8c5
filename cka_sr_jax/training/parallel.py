"""Run a per-device function on all local devices, by `jax.pmap` or `jax.shard_map`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def map_devices(
    function: Callable[..., Any],
    devices: Sequence[jax.Device],
    *,
    parallel: str = "pmap",
    donate_state: bool = False,
) -> Callable[..., Any]:
    """`(state, shard, data) -> function(state, shard, data, axis_name="batch")` on each device.

    One device needs no mapping: there it is `jax.jit` with `axis_name=None`, since the mapped
    program is slower by a tenth on small networks. `state` and `data` are the same on every device
    and so must the results be; `shard` is a pytree of arrays whose leading axis is split evenly
    over the devices.

    Args:
      parallel: "pmap" or "shard_map".
      donate_state: let the result reuse the state's memory; the state passed in is gone then.
    """
    donated = (0,) if donate_state else ()
    if len(devices) == 1:
        return jax.jit(partial(function, axis_name=None), donate_argnums=donated)
    function = partial(function, axis_name=AXIS)
    if parallel == "pmap":
        mapped = jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            devices=devices,
            donate_argnums=donated,
        )

        def call(state: Any, shard: Any, data: Any) -> Any:
            split = jax.tree.map(lambda a: a.reshape(len(devices), -1, *a.shape[1:]), shard)
            return mapped(state, split, data)

        return call
    # check_vma=True would transpose the replicated parameters into a sum over devices, and with
    # the step's own pmean give gradients that are too large by their number.
    return jax.jit(
        jax.shard_map(
            function,
            mesh=Mesh(np.array(devices), (AXIS,)),
            in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        ),
        donate_argnums=donated,
    )


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The tree's arrays on every device, in memory of their own (they may be donated)."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())

    def put(array: Any) -> jax.Array:
        # On several devices may_alias=False alone still shares the first one's memory.
        own = jnp.copy(array) if isinstance(array, jax.Array) else array
        return jax.device_put(own, sharding, may_alias=False)

    return jax.tree.map(put, tree)
