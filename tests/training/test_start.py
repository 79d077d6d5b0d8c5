"""Runs that start from the weights of another run, or of a file."""

import io
import shutil
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.numpy
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.export import save_safetensors
from cka_sr_jax.models import vit
from cka_sr_jax.sparsity import leaf_paths
from cka_sr_jax.sweeps import run_grid
from cka_sr_jax.training import ConfigError, load_variables, new_state
from cka_sr_jax.training.build import start_of
from cka_sr_jax.training.loop import prepare
from cka_sr_jax.workflows import lottery, run
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


def test_pruners_look_at_the_given_weights(trained):
    given = dict(leaf_paths(load_variables(trained)["params"]))
    config = small_config(model__start=str(trained), sparsity__rule="snip", sparsity__density=0.1)
    kept, size = 0, 0
    for path, leaf in first_variables(config).items():
        path, leaf = path.removeprefix("params/"), np.asarray(leaf)
        np.testing.assert_array_equal(leaf[leaf != 0], given[path][leaf != 0])
        if path.endswith("kernel"):
            kept, size = kept + np.count_nonzero(leaf), size + leaf.size
    # The first run kept a fifth of the weights. The others score 0, so SNIP keeps none of them.
    assert kept == round(0.1 * size)


@pytest.mark.parametrize("rule", ["dst", "str"])
def test_methods_that_learn_masks_start_with_the_given_weights(rule, trained):
    config = small_config(model__start=str(trained), sparsity__rule=rule)
    config.sparsity.density = 1.0
    if rule == "dst":
        config.sparsity.alpha = 1e-3
    state = new_state(prepare(config))
    expected = load_variables(trained)["params"]
    jax.tree.map(np.testing.assert_array_equal, state.params["weights"], expected)


def resnet_config(**fields):
    config = dense(model__name="resnet8", penalty__beta=0.0, **fields)
    config.model.options = ConfigDict({"width": 4})
    return config


def test_statistics_of_batch_norm_come_too(tmp_path):
    plan = prepare(resnet_config())
    init = partial(plan.model.init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32), shapes)
    save_safetensors(tmp_path / "net.safetensors", variables)
    config = resnet_config(model__start=str(tmp_path / "net.safetensors"))
    assert_starts_with(config, variables)
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), variables)
    save_safetensors(tmp_path / "half.safetensors", half)
    config.model.start = str(tmp_path / "half.safetensors")
    found = first_variables(config)
    assert {leaf.dtype for leaf in found.values()} == {np.dtype(np.float32)}
    save_safetensors(tmp_path / "params.safetensors", {"params": variables["params"]})
    config.model.start = str(tmp_path / "params.safetensors")
    with pytest.raises(ConfigError, match="it lacks 'batch_stats/"):
        prepare(config)


def test_weights_of_fewer_blocks_are_refused(tmp_path):
    plan = prepare(resnet_config())
    variables = plan.model.init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32), train=False)
    save_safetensors(tmp_path / "net.safetensors", variables)
    config = resnet_config(model__start=str(tmp_path / "net.safetensors"))
    config.model.name = "resnet14"
    with pytest.raises(ConfigError, match="it lacks 'params/stage1_block1"):
        prepare(config)


def test_lottery_tickets_start_from_trained_weights_too(trained, tmp_path):
    config = dense(model__start="nowhere", lottery__rounds=1, train__steps=3)
    config.lottery.rewind = 0.0
    with pytest.raises(ConfigError, match="does not exist"):
        run(config, tmp_path / "run", quiet())
    assert not (tmp_path / "run").exists()
    config.model.start = str(trained)
    state = new_state(lottery.prepare(config).dense)
    jax.tree.map(np.testing.assert_array_equal, state.params, load_variables(trained)["params"])
    assert run(config, tmp_path / "run", quiet())["rounds"][1]["density"] < 1


def test_a_grid_without_its_starts_stops_before_it_begins(tmp_path):
    config = dense(model__start="nowhere/seed={seed}")
    config.seeds = (0, 7)
    with pytest.raises(ConfigError, match=r"'nowhere/seed=0' cannot be used: it does not exist"):
        run_grid(config, tmp_path / "grid", console=quiet())
    assert not list(tmp_path.glob("grid/**/failed.txt"))


def test_a_run_says_what_it_starts_from_and_resumes(trained, tmp_path):
    console = quiet()
    config = dense(model__start=str(trained))
    run(config, tmp_path / "whole", console)
    assert f"Weights of {trained}; random at the start: nothing." in console.file.getvalue()
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (tmp_path / "parts" / "result.json").unlink()
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "40")
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
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained, unfinished)
    (unfinished / "result.json").unlink()
    diverged = tmp_path / "diverged"
    shutil.copytree(trained, diverged)
    (diverged / "result.json").write_text('{"diverged": {"step": 3}}')
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"fc.bias": np.zeros(10, np.float32)}, other)
    start = str(trained)
    for fields, message in (
        ({"model__start": "nowhere"}, "model.start='nowhere' cannot be used: it does not exist"),
        ({"model__start": str(tmp_path)}, "holds no run: it has no config.json"),
        ({"model__start": str(unfinished)}, "the run has not finished; give its command again"),
        ({"model__start": str(diverged)}, "the run diverged; name another"),
        ({"model__start": str(text)}, r"it is no safetensors file \(.*\), and no run's folder"),
        ({"model__start": str(other)}, "which fits a ResNet or a ViT, and"),
        ({"model__start": start, "model__options__hidden": (32, 32)}, "'params/hidden2/bias'"),
        ({"model__start": start, "model__options__hidden": (32, 32, 16)}, r"has shape \(32,\)"),
        ({"model__start": start, "layer_sparsity__strengths": (0.1,)}, "for ordinary runs"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message) as error:
            run(small_config(**fields), tmp_path / "run", quiet())
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()
