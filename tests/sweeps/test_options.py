"""Options of a grid that contradict each other, the grid or the machine."""

import pytest

from cka_sr_jax.sweeps import GridOptions, run_grid
from cka_sr_jax.training import ConfigError
from tests.sweeps.grids import small_grid


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GridOptions(index=4), "--grid_index=4 is outside this grid of 4 points: use 0 to 3"),
        (GridOptions(jobs=0), "--jobs=0 is too small: use 1 or more"),
        (GridOptions(jobs=2, replicas=2), "--jobs and --replicas are two ways"),
        (GridOptions(index=1, jobs=2), "--grid_index runs one point by itself"),
        (GridOptions(replicas=2), "--replicas trains on one device and this process sees 4"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_grid(small_grid(), tmp_path / "grid", options)
    assert not (tmp_path / "grid").exists()


def test_replicas_of_a_streamed_set_are_refused(tmp_path):
    config = small_grid()
    config.data.stream, config.data.crop = True, 8
    config.data.mean = config.data.std = (0.5,)
    with pytest.raises(ConfigError, match="--replicas trains on examples in the device's memory"):
        run_grid(config, tmp_path / "grid", GridOptions(replicas=2))
    assert not (tmp_path / "grid").exists()
