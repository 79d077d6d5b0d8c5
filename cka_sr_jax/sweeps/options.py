"""Which points of a grid to run, and how many at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from ml_collections import ConfigDict

from cka_sr_jax.training import ConfigError


@dataclass(frozen=True)
class GridOptions:
    """Which points of a grid to run, and how many at a time.

    Args:
      index: run only the point with this number, counted from 0.
      jobs: run this many points side by side, each in a process of its own. On a CPU they share the
        cores. SIGTERM, Ctrl-C and the death of the grid's process stop them all, each after it has
        saved a checkpoint.
      replicas: train up to this many points together in one program; they may differ in seed and
        beta alone. Faster on accelerators. See `sweeps.replicas`.
      retry: also run the points that failed before.
    """

    index: int | None = None
    jobs: int = 1
    replicas: int = 1
    retry: bool = False


def choose_points(points: Mapping[str, ConfigDict], options: GridOptions) -> dict[str, ConfigDict]:
    """The points that the options ask for.

    Raises:
      ConfigError: an option has no meaning, for this grid, this machine or beside another option.
    """
    for name, count in (("jobs", options.jobs), ("replicas", options.replicas)):
        if count < 1:
            raise ConfigError(f"--{name}={count} is too small: use 1 or more.")
    if options.jobs > 1 and options.replicas > 1:
        raise ConfigError("--jobs and --replicas are two ways to share one machine: use one.")
    if options.replicas > 1 and any(config.data.stream for config in points.values()):
        raise ConfigError(
            "--replicas trains on examples in the device's memory and data.stream=True leaves them "
            "on the disk: drop --replicas, or set data.stream=False and data.crop=0."
        )
    if options.replicas > 1 and (count := len(jax.local_devices())) > 1:
        raise ConfigError(
            f"--replicas trains on one device and this process sees {count}: start one process for "
            "each device and show it that one, for example with CUDA_VISIBLE_DEVICES=0."
        )
    if options.index is None:
        return dict(points)
    if options.jobs > 1 or options.replicas > 1:
        raise ConfigError(
            "--grid_index runs one point by itself: drop --jobs and --replicas, or --grid_index."
        )
    if not 0 <= options.index < len(points):
        raise ConfigError(
            f"--grid_index={options.index} is outside this grid of {len(points)} points: use 0 to "
            f"{len(points) - 1}."
        )
    name = list(points)[options.index]
    return {name: points[name]}
