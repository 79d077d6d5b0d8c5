"""Run a per-device function on all devices, by `jax.pmap` or `jax.shard_map`."""

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
    own_part: bool = False,
) -> Callable[..., Any]:
    """`(state, shard, data) -> function(state, shard, data, axis_name="batch")` on each device.

    One device needs no mapping: there it is `jax.jit` with `axis_name=None`, since the mapped
    program is slower by a tenth on small networks. `state` and `data` are the same on every device
    and so must the results be; `shard` is a pytree of arrays whose leading axis is split evenly
    over the devices. Where several processes train together, `devices` are those of all, every
    process passes the same arrays, and each feeds its own devices their part; with `own_part` it
    passes no more than that, the `own_rows` of `shard`.

    Args:
      parallel: "pmap" or "shard_map".
      donate_state: let the result reuse the state's memory; the state passed in is gone then.
      own_part: whether a process passes the rows of its own devices alone.
    """
    donated = (0,) if donate_state else ()
    if len(devices) == 1:
        return jax.jit(partial(function, axis_name=None), donate_argnums=donated)
    function = partial(function, axis_name=AXIS)
    several = jax.process_count() > 1
    mine = _own(devices)
    if parallel == "pmap":
        mapped = jax.pmap(
            function,
            axis_name=AXIS,
            in_axes=(None, 0, None),
            out_axes=None,
            devices=None if several else devices,
            donate_argnums=donated,
        )
        parts = len(mine) if own_part else len(devices)

        def call(state: Any, shard: Any, data: Any) -> Any:
            split = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), shard)
            if several and not own_part:
                split = jax.tree.map(lambda a: a[np.array(mine)], split)
            return mapped(state, split, data)

        return call
    # check_vma=True would transpose the replicated parameters into a sum over devices, and with
    # the step's own pmean give gradients that are too large by their number.
    mesh = Mesh(np.array(devices), (AXIS,))
    sharded = jax.jit(
        jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(AXIS), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=False,
        ),
        donate_argnums=donated,
    )
    if not several:
        return sharded
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def call_with_parts(state: Any, shard: Any, data: Any) -> Any:
        def part(array: Any) -> jax.Array:
            if not own_part:
                return jax.make_array_from_callback(array.shape, split, lambda index: array[index])
            size = len(array) // len(mine)
            shape = (size * len(devices), *array.shape[1:])

            def own(index: Any) -> Any:  # the rows of one of this process's devices
                number = mine.index((index[0].start or 0) // size)
                return array[number * size : (number + 1) * size]

            return jax.make_array_from_callback(shape, split, own)

        return sharded(state, jax.tree.map(part, shard), data)

    return call_with_parts


def branches_wait(devices: Sequence[jax.Device]) -> bool:
    """Whether these devices wait for the host wherever a program chooses a branch, as GPUs do."""
    return devices[0].platform == "gpu"


def own_rows(devices: Sequence[jax.Device], batch_size: int) -> np.ndarray:
    """The rows of a batch that this process's devices take: int [rows], increasing."""
    rows = np.arange(batch_size).reshape(len(devices), -1)
    return rows[np.array(_own(devices))].reshape(-1)


def _own(devices: Sequence[jax.Device]) -> list[int]:
    """Which of the devices are this process's."""
    return [i for i, device in enumerate(devices) if device in jax.local_devices()]


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """The tree's arrays on every device, in memory of their own (they may be donated)."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    if jax.process_count() > 1:  # where no process can copy to all devices
        return jax.tree.map(lambda array: jax.device_put(np.array(array), sharding), tree)
    # On several devices may_alias=False alone still shares the first one's memory.
    leaves, structure = jax.tree.flatten(tree)
    copies = iter(_copy([leaf for leaf in leaves if isinstance(leaf, jax.Array)]))
    own = [next(copies) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
    put = [jax.device_put(leaf, sharding, may_alias=False) for leaf in own]
    return jax.tree.unflatten(structure, put)


@jax.jit
def _copy(arrays: list[jax.Array]) -> list[jax.Array]:
    """Copies of all, in one program."""
    return [jnp.copy(array) for array in arrays]
