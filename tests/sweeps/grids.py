"""Small grids, for the tests of this folder."""

import io
import json

from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.training import default_config


def small_grid(**axes):
    """Two betas, one density and two seeds; two steps each."""
    config = default_config()
    config.model.options.hidden = (8, 8)
    config.train.steps = 2
    config.grid = ConfigDict(
        {"penalty": {"beta": (0.0, 0.01)}, "sparsity": {"density": (0.5,)}, **axes}
    )
    config.seeds = (3, 4)
    return config


def two_points():
    """beta=0.0,seed=3 and beta=0.0,seed=4."""
    config = small_grid()
    config.grid = ConfigDict({"penalty": {"beta": (0.0,)}})
    return config


def quiet():
    return Console(file=io.StringIO(), soft_wrap=True)


def write_run(folder, config, result):
    """What a finished run leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "result.json").write_text(json.dumps(result))
