"""From a config to its plan, and what only data and model can tell."""

import jax
import numpy as np
import pytest

from cka_sr_jax.sparsity import get_masks, leaf_paths
from cka_sr_jax.training import ConfigError, new_state
from cka_sr_jax.training.build import state_shapes
from cka_sr_jax.training.loop import prepare
from cka_sr_jax.workflows import run
from tests.speeds import fast_among
from tests.training.runs import config_with, small_config


def test_a_plan_has_the_runs_length_data_and_changes_of_masks():
    config = small_config(train__steps=0, train__epochs=2.5, sparsity__rule="rigl")
    config.sparsity.update_every, config.sparsity.end = 7, 0.5
    plan = prepare(config)
    images = len(plan.dataset.train_labels)
    assert plan.steps_per_epoch == images // 64
    assert plan.steps == int(np.ceil(2.5 * plan.steps_per_epoch))
    last = round(0.5 * plan.steps)
    expected = sorted({*range(7, last + 1, 7), last})
    assert np.flatnonzero(plan.mask_updates).tolist() == expected
    pixels = plan.dataset.train_images.astype(np.float64) / 255
    np.testing.assert_allclose(plan.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(plan.std, pixels.std((0, 1, 2)), rtol=1e-6)


def test_statistics_of_the_config_come_before_those_of_the_images():
    plan = prepare(small_config(data__mean=(0.5,), data__std=(0.25,)))
    assert (plan.mean, plan.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize("rule", fast_among(["rst", "snip", "dst"], "dst"))
def test_the_first_state_is_pruned_and_has_the_shapes_that_were_planned(rule):
    fields = {"alpha": 1e-4} if rule == "dst" else {"density": 0.2}
    config = config_with(sparsity__rule=rule, **{f"sparsity__{k}": v for k, v in fields.items()})
    plan = prepare(config)
    state = new_state(plan)
    planned = state_shapes(plan)
    assert jax.tree.structure(state) == jax.tree.structure(planned)
    assert all(
        one.shape == two.shape and one.dtype == two.dtype
        for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(planned), strict=True)
    )
    params = dict(leaf_paths(state.params))
    for path, mask in leaf_paths(get_masks(state.opt_state)) if rule != "dst" else ():
        assert not params[path][~mask].any()
        assert params[path][mask].all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity__exclude": ("haed",)}, "exclude pattern 'haed' matches no parameter"),
        ({"model__name": "resnet"}, "Unknown model 'resnet'"),
        (
            {"model__options__width": 3},
            "Unknown option of mlp 'width': expected one of dtype, hidden; if the config file sets "
            "it for another model, name a file that is made for mlp",
        ),
        (
            {"model__options__hiden": 3},
            "Unknown option of mlp 'hiden': did you mean 'hidden'; if the",
        ),
        (
            {"model__name": "resnet21", "model__options__hidden": (3,)},
            "Unknown model 'resnet21', since depth=21",
        ),
        ({"model__options__hidden": (16,)}, "no pair of features to penalize"),
        ({"model__options__hidden": ("a", "b")}, "model.options=.* do not make a mlp"),
        ({"model__options__hidden": (0, 16)}, r"hidden=\(0, 16\): expected 1 unit or more in each"),
        ({"model__options__dtype": "float32"}, "model.options.dtype cannot be set"),
        ({"data__name": "mnist"}, "data.dir is empty"),
        ({"data__name": "mnist", "data__dir": "/nowhere"}, "data.dir is '/nowhere'"),
        ({"data__mean": (0.1, 0.2), "data__std": (1.0, 1.0)}, "There are 2 means"),
        ({"data__pad": 8}, "data.pad=8: expected fewer pixels than the 8 of the images'"),
        ({"train__batch_size": 4000}, "more than the 1293 training images"),
        (
            {"sparsity__rule": "rigl", "sparsity__update_every": 10_000},
            r"with sparsity.end=0.75: update_every=10000 is more than",
        ),
    ],
)
def test_what_only_data_and_model_can_tell_is_one_sentence_and_writes_nothing(
    fields, message, tmp_path
):
    workdir = tmp_path / "run"
    with pytest.raises(ConfigError, match=message) as error:
        run(config_with(**fields), workdir)
    assert "\n" not in str(error.value)
    assert not workdir.exists()
