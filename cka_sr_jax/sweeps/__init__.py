"""Many runs of one config: every point of a grid, in turn, side by side or in one program."""

from cka_sr_jax.sweeps.options import GridOptions
from cka_sr_jax.sweeps.points import grid_points
from cka_sr_jax.sweeps.runner import run_grid

__all__ = ["GridOptions", "grid_points", "run_grid"]
