"""A config with a user's mistake: the grid has no group "penalty" yet."""

from cka_sr_jax.training import default_config


def get_config():
    """The config that cannot be made."""
    config = default_config()
    config.grid.penalty.beta = (0.0, 1e-3)
    return config
