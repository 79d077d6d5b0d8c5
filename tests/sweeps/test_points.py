"""Which runs a grid has, what they are called, and what is refused."""

import pytest

from cka_sr_jax.sweeps import grid_points
from cka_sr_jax.training import ConfigError, default_config
from tests.sweeps.grids import small_grid


def test_points_are_all_combinations_with_every_seed():
    points = grid_points(small_grid())
    assert list(points) == [
        f"beta={beta},density=0.5,seed={seed}" for beta in (0.0, 0.01) for seed in (3, 4)
    ]
    config = points["beta=0.01,density=0.5,seed=4"]
    assert (config.penalty.beta, config.sparsity.density, config.seed) == (0.01, 0.5, 4)
    assert not config.grid
    assert not config.seeds


def test_values_are_named_as_the_config_converts_them():
    assert list(grid_points(small_grid(penalty={"beta": (0, 0.01)}))) == list(
        grid_points(small_grid())
    )


def test_fields_that_end_alike_keep_their_whole_names():
    grid = small_grid(eval={"every": (1, 2)}, penalty={"every": (3,)})
    assert next(iter(grid_points(grid))) == "eval.every=1,penalty.every=3,density=0.5,seed=3"


def test_options_that_the_config_file_does_not_set_can_be_axes():
    """Also in a config that is locked, as those of the command line are."""
    config = small_grid(model={"options": {"batch_norm": (False, True)}})
    config.lock()
    points = list(grid_points(config).values())
    assert [point.model.options.batch_norm for point in points[::4]] == [False, True]
    assert "batch_norm" not in config.model.options


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"penalty": {"bata": (1.0,)}},
            "Unknown config field in the grid: 'penalty.bata': did you mean",
        ),
        (
            {"penalty": {"beta": 0.1}},
            r"grid.penalty.beta=0.1 is not a tuple of values: write for example \(0.1,\)",
        ),
        ({"penalty": {"beta": ()}}, r"grid.penalty.beta=\[\] is not a tuple of values"),
        (
            {"penalty": {"beta": (0.0, "1e-3")}},
            r"^penalty.beta='1e-3': expected a number, at least 0, such as 0.0001 \(strength of",
        ),
        (
            {"sparsity": {"update_every": (None, 2.5)}},
            r"^sparsity.update_every=2.5: expected a w",
        ),
        ({"model": {"options": {"hidden": (8,)}}}, "the grid's point .* is wrong"),
        (
            {"sparsity": {"exclude": ("head/kernel", "hidden0")}},
            r"^grid.sparsity.exclude=\('head/kernel', 'hidden0'\): each value is itself a tuple of "
            r"strings, so write for example \(\('head/kernel',\),\)\.$",
        ),
        (
            {"sparsity": {"exclude": ((), tuple(f"layer{i}/kernel" for i in range(20)))}},
            r"^grid.sparsity.exclude has \('layer0/kernel', .*\), with which a point's folder name "
            r"has \d{3} bytes, and file systems allow 255: shorten the value",
        ),
        ({"penalty": {"beta": (-1.0,)}}, "penalty.beta=-1.0: expected a number"),
        ({"sparsity": {"rule": ("rigle",)}}, "Unknown sparsity.rule 'rigle'"),
        ({"seeds": (1, 2)}, "Unknown config field in the grid: 'seeds': did you mean 'seed'"),
        ({"seed": (1, 2)}, "grid.seed and seeds both say which seeds to run"),
        ({"penalty": {"beta": (0.0, 1e-3, 0)}}, r"grid.penalty.beta=.* has a value twice"),
        (
            {"sparsity": {"exclude": (("a/b",), ("a_b",))}},
            r"two points of this grid would both be called .*exclude=\('a_b',\),seed=3: drop one",
        ),
        (
            {"sparsity": {"rule": ("rigl", "rst"), "update_every": (1,)}},
            r"sparsity.update_every=1 is an option that .*'rst' lacks",
        ),
    ],
)
def test_a_wrong_grid_is_one_sentence(change, message):
    with pytest.raises(ConfigError, match=message):
        grid_points(small_grid(**change))


def test_a_config_without_a_grid_is_refused():
    with pytest.raises(ConfigError, match="this config has no grid"):
        grid_points(default_config())
