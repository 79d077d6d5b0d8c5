"""Scikit-learn's digits, three betas with three seeds each: a first grid.

Not in the paper: to see grids, tables and figures work within minutes.

  python launch.py --config=configs/quickstart/digits_cka.py --grid
  python -m cka_sr_jax.analysis.paired runs/digits_cka
  python -m cka_sr_jax.analysis.figures curves runs/digits_cka curves.png

Expected: no clear difference between the betas. The test set has 360 images, so one image is a
quarter of a point.
Cost: 9 runs of a minute each on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.quickstart.digits import get_config as recipe


def get_config():
    """The config."""
    config = recipe()
    config.seeds = (0, 1, 2)
    config.grid.penalty = ConfigDict({"beta": (0.0, 1e-3, 1e-2)})
    return config
