"""Each grid for an accelerator, the paper's tables and figures, for two epochs of random images."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cka_sr_jax.sweeps import GridOptions, grid_points, run_grid
from tests.tfds_sets import class_feature, image_feature, write_set

FOLDER = Path(__file__).parents[2] / "configs"
GRIDS = [*(FOLDER / "paper").glob("table*.py"), *(FOLDER / "paper").glob("figure*.py")]
CONFIGS = [*sorted(GRIDS), FOLDER / "studies" / "cifar10_resnet20_rigl_cka.py"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """CIFAR-10 and CIFAR-100 in shape, with 320 images to train on and 32 to test."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for classes in (10, 100):
        features = {"image": image_feature(32, 32, 3), "label": class_feature(classes)}
        splits = {
            split: [(rng.integers(0, 256, (32, 32, 3), np.uint8), i % classes) for i in range(n)]
            for split, n in (("train", 320), ("test", 32))
        }
        write_set(folder / f"cifar{classes}" / "3.0.2", splits, features)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_two_epochs_of_the_last_point(path, sets, tmp_path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.dir, config.data.cache_dir = str(sets), str(tmp_path / "cache")
    config.train.epochs = 2.0
    if config.sparsity.update_every:
        config.sparsity.update_every = 1  # the two epochs have 4 steps
    points = grid_points(config)
    console = Console(file=io.StringIO(), soft_wrap=True)
    states = run_grid(config, tmp_path / "grid", GridOptions(index=len(points) - 1), console)
    assert states[list(points)[-1]].startswith("finished")
    result = json.loads((tmp_path / "grid" / list(points)[-1] / "result.json").read_text())
    assert result["steps"] == 4
    assert 0 <= result["test"]["accuracy"] <= 1
    assert result["cka_within_stage"] is not None
