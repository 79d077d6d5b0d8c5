"""Methods by their config names: runs of those that learn their masks, and SynFlow in depth."""

import io
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from cka_sr_jax.models import compact, create_model
from cka_sr_jax.sparsity import (
    adam_correction,
    dst,
    get_masks,
    layer_counts,
    leaf_paths,
    make_rule,
    n_m_masks,
    soft_threshold,
    sparse_init,
    sparsify,
)
from cka_sr_jax.training import (
    Checkpoints,
    ConfigError,
    default_config,
    load_weights,
    methods,
    new_state,
)
from cka_sr_jax.training.loop import prepare
from cka_sr_jax.workflows import run
from tests.speeds import fast_among
from tests.training.runs import small_config

pytestmark = pytest.mark.usefixtures("blank_images")


def learned_config(rule, **options):
    config = default_config()
    config.model.options.hidden = (32, 32)
    config.train.steps = 60
    config.train.batch_size = 64
    config.sparsity.rule = rule
    config.sparsity.update(options)
    config.penalty.every = 2
    return config


def stored(workdir):
    checkpoints = Checkpoints(workdir)
    arrays = checkpoints.arrays()
    checkpoints.close()
    return arrays


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("dst", {"alpha": 1e-3, "exclude": ("head/kernel",)}),
        pytest.param("str", {"initial": -4.0}, marks=pytest.mark.slow),
        pytest.param(
            "sr_ste", {"n": 1, "m": 4, "exclude": ("head/kernel",)}, marks=pytest.mark.slow
        ),
    ],
)
def test_a_run_and_the_weights_it_gives(rule, options, tmp_path):
    result = run(learned_config(rule, **options), tmp_path, Console(file=io.StringIO()))
    assert result["test"]["accuracy"] > 0.4  # chance is 0.1
    assert result["density"] < 1
    arrays = stored(tmp_path)
    variables, given = load_weights(tmp_path)
    params = variables["params"]
    masks = {k.split(".")[-2]: v for k, v in arrays.items() if "masks.weights" in k}
    assert ("head" in masks) == ("exclude" not in options)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert result["density"] == pytest.approx(kept / sum(mask.size for mask in masks.values()))
    for layer, mask in masks.items():
        np.testing.assert_array_equal(params[layer]["kernel"] != 0, mask)
        np.testing.assert_array_equal(given[layer]["kernel"], mask)
    # The given weights are the tested ones.
    dense = arrays["state.params.weights.hidden0.kernel"]
    if rule == "sr_ste":
        expected = dense * n_m_masks({"w": jnp.asarray(dense)}, 1, 4)["w"]
    else:
        threshold = arrays["state.params.thresholds.hidden0.kernel"]
        method = dst(1e-3) if rule == "dst" else soft_threshold()
        expected = method.weights({"weights": {"w": dense}, "thresholds": {"w": threshold}})["w"]
    np.testing.assert_array_equal(params["hidden0"]["kernel"], expected)
    model = create_model("mlp", 10, hidden=(32, 32))
    assert model.apply({"params": params}, np.zeros((2, 8, 8, 1)), train=False).shape == (2, 10)


def test_mistakes_are_one_sentence(tmp_path):
    for rule, options, message in (
        ("dst", {}, "sparsity.rule 'dst' needs the option sparsity.alpha"),
        ("dst", {"alpha": -1.0}, "sparsity.alpha=-1.0: expected a number, at least 0"),
        ("str", {"alpha": 1.0}, "sparsity.alpha=1.0 is an option that sparsity.rule 'str' lacks"),
        ("sr_ste", {"m": 3}, "m=3"),
        ("sr_ste", {"n": 4, "m": 2}, "n=4"),
    ):
        with pytest.raises(ConfigError, match=message) as error:
            run(learned_config(rule, **options), tmp_path / "run")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def masks_of(config):
    masks = get_masks(new_state(prepare(config)).opt_state)
    return {path: np.asarray(mask) for path, mask in leaf_paths(masks)}


@pytest.mark.parametrize("method", fast_among(["snip", "grasp", "synflow", "ntt"], "ntt"))
def test_pruning_before_training(method):
    config = small_config(sparsity__rule=method, penalty__beta=0.0)
    if method in ("synflow", "ntt"):
        config.sparsity.rounds = 5
    masks = masks_of(config)
    shapes = {"hidden0": (64, 32), "hidden1": (32, 32), "hidden2": (32, 32), "head": (32, 10)}
    assert {path: mask.shape for path, mask in masks.items()} == {
        f"{layer}/kernel": shape for layer, shape in shapes.items()
    }
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    # NTT's layers are uniform by default, the others rank all layers together.
    uniform = layer_counts(shapes, 0.2, "uniform")
    expected = sum(uniform.values()) if method == "ntt" else round(0.2 * total)
    assert sum(mask.sum() for mask in masks.values()) == expected


@pytest.mark.slow
def test_layer_ratios_only():
    config = small_config(sparsity__rule="snip", penalty__beta=0.0)
    best = masks_of(config)
    config.sparsity.shuffle = True
    shuffled = masks_of(config)
    for path, mask in best.items():
        assert mask.sum() == shuffled[path].sum()
    assert (best["hidden0/kernel"] != shuffled["hidden0/kernel"]).any()


def test_a_run_that_resumes_has_its_masks_from_the_checkpoint(tmp_path, monkeypatch):
    config = small_config(sparsity__rule="snip", train__steps=2, penalty__beta=0.0)
    kept = run(config, tmp_path)["parameters_kept"]
    shutil.rmtree(tmp_path / "report")
    monkeypatch.setitem(methods.PRUNERS, "snip", methods.PRUNERS["snip"]._replace(masks=None))
    assert run(config, tmp_path)["parameters_kept"] == kept


@pytest.mark.parametrize(
    ("distribution", "reason"),
    [
        ("erk_plus", r"head layer is not clear: 2 candidates \(head/kernel, hidden0/kernel\)"),
        ("uniform_plus", r"head layer is not clear: 2 candidates"),
    ],
)
def test_a_distribution_that_does_not_suit_the_model_names_a_cure_that_a_config_has(
    distribution, reason
):
    config = small_config(sparsity__distribution=distribution)
    config.model.options.hidden, config.penalty.beta = (16,), 0.0
    message = f"^distribution '{distribution}' does not fit this model, whose {reason}.*; use "
    with pytest.raises(ConfigError, match=message + "another distribution, such as 'erk', or in"):
        prepare(config)


@pytest.mark.parametrize("rule", fast_among(["rst", "snip", "str"], "str"))
def test_a_run_prunes_only_what_it_includes(rule, tmp_path):
    config = learned_config(rule, include=("hidden0",))
    run(config, tmp_path, Console(file=io.StringIO()))
    layers = (tmp_path / "report" / "layers.csv").read_text().splitlines()
    pruned = [line.split(",")[0] for line in layers if "matrix" in line]
    assert pruned == ["hidden0/kernel"]


def test_the_last_change_of_masks_comes_before_the_last_step():
    """What grows at the end of a run would never be trained."""
    config = small_config(
        sparsity__rule="set", sparsity__update_every=30, sparsity__end=1.0, train__steps=100
    )
    assert np.flatnonzero(prepare(config).mask_updates).tolist() == [30, 60, 90, 98]


def tied_config(model, **options):
    config = small_config(
        sparsity__rule="channels", sparsity__density=0.5, sparsity__exclude=("head/kernel",),
        sparsity__update_every=10, model__name=model, sparsity__tied=True, penalty__beta=0.0,
    )  # fmt: skip
    config.model.options = options
    return config


def test_tied_channels_of_a_run_can_be_removed():
    plan = prepare(tied_config("resnet8", width=4))
    tx, x = plan.method.transform(optax.sgd(0.1), 0), jnp.ones((2, 8, 8, 1))
    variables = plan.model.init(jax.random.key(0), x, train=False)
    params, state = sparse_init(tx, variables["params"])
    update = jax.jit(lambda params, state: tx.update(params, state, params)[1])
    for _ in range(31):
        state = update(params, state)
    small = compact(plan.model, {**variables, "params": params}, get_masks(state), x).model
    assert small.widths == ((2,), (2, 2), (4, 4), (8, 8))


def test_tied_channels_need_a_model_that_is_known():
    with pytest.raises(ConfigError, match="wiring of a WideResNet is not known") as error:
        prepare(tied_config("wrn10-1"))
    assert "\n" not in str(error.value)


def test_new_weights_of_a_run_are_those_of_the_library():
    config = small_config(
        sparsity__rule="set", sparsity__update_every=7, sparsity__new_weights="adam",
        optimizer__name="adamw",
    )  # fmt: skip
    plan = prepare(config)
    params = {"kernel": jnp.ones((20, 10))}
    states = []
    for tx in (
        plan.method.transform(plan.optimizer, 0),
        sparsify(plan.optimizer, plan_rule(), new_weights=adam_correction()),
    ):
        masked, state = sparse_init(tx, params)
        update = jax.jit(tx.update)
        for step in range(12):
            grads = {"kernel": jnp.cos(jnp.arange(200.0) + step).reshape(20, 10)}
            updates, state = update(grads, state, masked)
            masked = optax.apply_updates(masked, updates)
        states.append(masked["kernel"])
    np.testing.assert_array_equal(*states)


def plan_rule():
    return make_rule("set", density=0.2, end_step=30, update_every=7)
