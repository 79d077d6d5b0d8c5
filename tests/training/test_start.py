"""Runs that start from the weights of another run, or of a file."""

import io
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.export import save_safetensors
from cka_sr_jax.models import vit
from cka_sr_jax.sparsity import leaf_paths
from cka_sr_jax.training import ConfigError, load_variables, new_state
from cka_sr_jax.training.build import start_of
from cka_sr_jax.training.loop import prepare
from cka_sr_jax.workflows import run
from tests.models import test_torch_vit
from tests.training.runs import assert_same_run, small_config

pytestmark = pytest.mark.usefixtures("blank_images")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("runs") / "seed=0"
    run(small_config(train__steps=5), folder, quiet())
    return folder


def quiet():
    return Console(file=io.StringIO(), width=1000)


def first_variables(config):
    state = new_state(prepare(config))
    return dict(leaf_paths({"params": state.params, "batch_stats": state.batch_stats}))


def assert_starts_with(config, variables, besides=()):
    found = first_variables(config)
    for path, leaf in leaf_paths(variables):
        if not path.startswith(besides or "-"):
            np.testing.assert_array_equal(found[path], leaf, err_msg=path)
    return found


def dense(**fields):
    return small_config(sparsity__rule="dense", sparsity__density=1.0, **fields)


def test_a_run_starts_with_the_weights_of_another(trained):
    source = str(trained).replace("=0", "={seed}")
    assert_starts_with(dense(model__start=source), load_variables(trained))


def test_masks_choose_among_the_given_weights(trained):
    given = dict(leaf_paths(load_variables(trained)["params"]))
    config = small_config(model__start=str(trained), sparsity__rule="snip", sparsity__density=0.1)
    for path, leaf in first_variables(config).items():
        path = path.removeprefix("params/")
        leaf = np.asarray(leaf)
        np.testing.assert_array_equal(leaf[leaf != 0], given[path][leaf != 0])
        if path.endswith("kernel"):  # those that the other run had pruned have no score
            assert np.count_nonzero(leaf) < np.count_nonzero(given[path])


def test_a_run_says_what_it_starts_from_and_a_resumed_one_needs_it_no_more(trained, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(trained, source)
    console = quiet()
    config = dense(model__start=str(source))
    run(config, tmp_path / "whole", console)
    assert f"Weights of {source}; random at the start: nothing." in console.file.getvalue()
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "result.json").unlink()
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "40")
    shutil.rmtree(source)
    run(config, tmp_path / "parts", quiet())
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_head_for_other_classes_is_new(trained, tmp_path):
    variables = load_variables(trained)
    head = variables["params"]["head"]
    variables["params"]["head"] = {name: leaf[..., :3] for name, leaf in head.items()}
    save_safetensors(tmp_path / "three.safetensors", variables)
    config = dense(model__start=str(tmp_path / "three.safetensors"))
    found = assert_starts_with(config, variables, besides="params/head")
    fresh = first_variables(dense())
    np.testing.assert_array_equal(found["params/head/kernel"], fresh["params/head/kernel"])


@pytest.fixture
def tiny_vit(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "base", (12, 3, 2))


def vit_config(**options):
    config = dense(model__name="vit-base")
    config.model.options = ConfigDict({"patch": 4, **options})
    return config


def test_tokens_are_dropped_from_a_vit_that_is_trained(tiny_vit, tmp_path):
    plan = prepare(vit_config())
    variables = plan.model.init(jax.random.key(5), np.zeros((1, 8, 8, 1), np.float32), train=False)
    save_safetensors(tmp_path / "whole.safetensors", variables)
    config = vit_config(keep_rates=(0.5,))
    config.model.start = str(tmp_path / "whole.safetensors")
    assert_starts_with(config, variables)
    assert start_of(prepare(config)).new == ("keep0",)


def test_weights_of_timm(tiny_vit, tmp_path):
    state = test_torch_vit.state_dict(test_torch_vit.TIMM)
    # One channel and 2 x 2 patches, as the digits have.
    state["pos_embed"] = state["pos_embed"][:, :5]
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :1]
    path = tmp_path / "vit.safetensors"
    safetensors.numpy.save_file(state, path)
    config = vit_config(keep_rates=(0.5,))
    config.model.start = str(path)
    found = first_variables(config)
    np.testing.assert_array_equal(found["params/class_token"], state["cls_token"])
    down = state["blocks.1.mlp.fc2.weight"].T
    np.testing.assert_array_equal(found["params/block1/down/kernel"], down)
    fresh = first_variables(vit_config(keep_rates=(0.5,)))  # of the 5 classes there, not 10
    np.testing.assert_array_equal(found["params/head/kernel"], fresh["params/head/kernel"])


def test_what_does_not_fit_is_refused_before_anything_is_written(trained, tmp_path):
    text = tmp_path / "text.safetensors"
    text.write_text("none")
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"fc.bias": np.zeros(10, np.float32)}, other)
    start = str(trained)
    for fields, message in (
        ({"model__start": "nowhere"}, "model.start='nowhere' does not exist"),
        ({"model__start": str(tmp_path)}, "holds no run: it has no config.json"),
        ({"model__start": str(text)}, "is no safetensors file and no run's folder"),
        ({"model__start": str(other)}, "which only a ResNet or a ViT can take"),
        ({"model__start": start, "model__options__hidden": (32, 32)}, "'params/hidden2/bias'"),
        ({"model__start": start, "model__options__hidden": (32, 32, 16)}, r"of shape \(32"),
        ({"model__start": start, "layer_sparsity__strengths": (0.1,)}, "for ordinary runs"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message) as error:
            run(small_config(**fields), tmp_path / "run", quiet())
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
