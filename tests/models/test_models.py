"""What all models share: initialization, low precision, features, and names that are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.accounting import kernel_positions
from cka_sr_jax.models import ResNet, create_model
from cka_sr_jax.models.layers import rematerialized
from cka_sr_jax.models.resnet import ResidualBlock
from cka_sr_jax.similarity import cka_penalty
from cka_sr_jax.sparsity import layers_of, leaf_paths
from tests.models.shapes import KEY, init_shapes, multiply_adds, random_variables

IMAGE = (16, 16, 1)
MODELS = [
    ("mlp", {}),
    ("lenet5", {}),
    ("resnet8", {}),
    ("resnet50", {"stem": "imagenet", "width": 4}),
    ("vgg16", {"width": 4}),
    ("wrn10-2", {"width": 4}),
]


def test_weights_start_normal_with_variance_two_over_fan_in():
    model = ResNet(num_classes=1000, depth=8)
    params = jax.jit(lambda: model.init(KEY, jnp.ones((1, 8, 8, 3)), train=True))()["params"]
    kernel = params["stage3_block0"]["conv2"]["kernel"]
    normalized = np.ravel(kernel) / np.sqrt(2 / (3 * 3 * 64))
    assert abs(normalized.std() - 1) < 0.01
    assert abs(normalized.mean()) < 0.02
    # A normal cut at two standard deviations, as in "he_normal", has none of its 4.6 % beyond.
    assert 0.04 < np.mean(np.abs(normalized) > 2) < 0.05
    head = params["head"]["kernel"]
    assert abs(np.std(head) / np.sqrt(2 / 64) - 1) < 0.01
    assert not np.any(params["head"]["bias"])


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "options"), MODELS)
def test_bfloat16_computes_in_it_and_keeps_parameters_and_logits_in_float32(name, options, dtype):
    model = create_model(name, 10, dtype=dtype, **options)
    x = jnp.ones((4, *IMAGE))
    variables = init_shapes(model, IMAGE)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits, mutables = jax.eval_shape(
        lambda v: model.apply(v, x, train=True, mutable=["features", "batch_stats"]), variables
    )
    assert logits.dtype == jnp.float32
    features, others = mutables.pop("features"), mutables
    assert {leaf.dtype for leaf in jax.tree.leaves(features)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(others)} <= {jnp.dtype("float32")}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.slow
def test_bfloat16_logits_are_near_those_of_float32():
    x = jax.random.normal(KEY, (8, 8, 8, 3))
    model, half = (create_model("resnet8", 10, dtype=d) for d in ("float32", "bfloat16"))
    variables = jax.jit(lambda: model.init(KEY, x, train=True))()

    def logits(model):
        return jax.jit(lambda: model.apply(variables, x, train=True, mutable=True)[0])()

    error = np.linalg.norm(logits(half) - logits(model)) / np.linalg.norm(logits(model))
    assert 0 < error < 0.05


def test_sown_features_go_into_the_penalty_and_its_gradient():
    model = create_model("lenet5", 3)
    x = jax.random.normal(KEY, (8, 12, 12, 1))
    variables = jax.jit(lambda: model.init(KEY, x, train=True))()

    def penalty(params):
        _, mutables = model.apply({"params": params}, x, train=True, mutable=["features"])
        return cka_penalty(mutables["features"])

    value, grads = jax.jit(jax.value_and_grad(penalty))(variables["params"])
    assert 0 < value < 4  # two pairs of alike layers, each counted twice
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert np.any(grads["conv1"]["kernel"])
    assert not np.any(grads["head"]["kernel"])


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_kernels_are_pruned_and_all_else_stays_dense(name, options):
    model = create_model(name, 10, **options)
    variables = init_shapes(model, IMAGE)
    leaves = dict(leaf_paths(variables["params"]))
    pruned = layers_of(variables["params"])
    assert set(pruned) == {path for path in leaves if path.endswith("/kernel")}
    assert all(leaf.ndim == 1 for path, leaf in leaves.items() if path not in pruned)
    x = jax.ShapeDtypeStruct((1, *IMAGE), jnp.float32)
    assert set(kernel_positions(model, variables, x)) == set(pruned)


def saved_bytes(model, variables, x):
    """Bytes that the forward pass keeps for the gradient of the parameters."""

    def residuals(params, batch_stats):
        def logits(params):
            collections = {"params": params, "batch_stats": batch_stats}
            return model.apply(collections, x, train=True, mutable=["features", "batch_stats"])[0]

        return jax.vjp(logits, params)[1]

    saved = jax.eval_shape(residuals, variables["params"], variables["batch_stats"])
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))


@pytest.mark.parametrize(
    ("name", "options"),
    [MODELS[2], *(pytest.param(*MODELS[i], marks=pytest.mark.slow) for i in (4, 5))],
)
def test_rematerialized_blocks_have_the_same_parameters_and_keep_less(name, options):
    plain, remat = (create_model(name, 10, **options, remat=r) for r in (False, True))
    variables = init_shapes(plain, IMAGE)
    assert init_shapes(remat, IMAGE) == variables
    assert multiply_adds(remat, variables, IMAGE) == multiply_adds(plain, variables, IMAGE)
    x = jnp.ones((32, *IMAGE))
    weights = sum(leaf.size for leaf in jax.tree.leaves(variables)) * 4
    kept, kept_plain = (saved_bytes(model, variables, x) - weights for model in (remat, plain))
    assert 0 < kept < 0.7 * kept_plain


def test_a_rematerialized_block_starts_with_the_same_weights():
    x = jnp.ones((1, 4, 4, 2))
    kinds = (rematerialized(ResidualBlock, remat) for remat in (False, True))
    one, two = (jax.jit(kind(2).init, static_argnums=2)(KEY, x, True) for kind in kinds)
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
def test_rematerialization_computes_the_same_with_less_memory():
    x = jax.random.normal(KEY, (32, 8, 8, 1))

    def compiled(remat):
        model = create_model("resnet14", 10, width=2, remat=remat)
        variables = random_variables(model, x.shape[1:])

        def loss(params):
            logits, mutables = model.apply(
                {**variables, "params": params}, x, train=True, mutable=["features", "batch_stats"]
            )
            penalty = cka_penalty(mutables["features"], samples=8)
            return jnp.mean(jnp.square(logits)) + penalty, mutables

        lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables["params"])
        # XLA's CPU backend would merge the second computation with the first.
        options = {"xla_disable_hlo_passes": "cse_barrier_expander"}
        return variables["params"], lowered.compile(compiler_options=options)

    (params, plain), (_, remat) = compiled(False), compiled(True)
    for one, two in zip(*map(jax.tree.leaves, (plain(params), remat(params))), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    before, after = (each.memory_analysis().temp_size_in_bytes for each in (plain, remat))
    assert after < 0.7 * before


@pytest.mark.parametrize(
    ("name", "widths", "message"),
    [
        ("lenet5", (6, 16, 120), "expected 4 whole numbers .* the two convolutions and the two"),
        ("lenet5", (6, 0, 120, 84), r"widths=\(6, 0, 120, 84\): expected 4 whole numbers of 1 or"),
        (
            "vgg16",
            (64,) * 12,
            "expected 13 whole numbers of 1 or more, for the convolutions in ord",
        ),
        ("resnet8", (4, 3, 4), "one for the stem and then 2 for each of 3 blocks, such as"),
        ("resnet8", ((4,), (3, 4), (6, 8)), "one for the stem and then 2 for each of 3 blocks"),
        (
            "resnet8",
            ((4,), (3, 5), (6, 8), (9, 9)),
            "stage1_block0 adds its input of 4 channels to",
        ),
        ("resnet50", ((4,), *((1, 1),) * 16), "one for the stem and then 3 for each of 16 blocks"),
    ],
)
def test_widths_that_do_not_fit_are_one_sentence(name, widths, message):
    with pytest.raises(ValueError, match=message) as error:
        create_model(name, 10, widths=widths)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "widths", "options"),
    [
        ("lenet5", (6, 16, 120, 84), {}),
        ("vgg16", (4, 4, 8, 8, *(16,) * 3, *(32,) * 6), {"width": 4}),
        ("resnet8", ((4,), (4, 4), (8, 8), (16, 16)), {"width": 4}),
    ],
)
def test_the_usual_widths_give_the_usual_model(name, widths, options):
    usual, same = create_model(name, 10, **options), create_model(name, 10, widths=widths)
    assert init_shapes(same, IMAGE) == init_shapes(usual, IMAGE)


def test_unknown_names_and_options_say_what_is_known():
    with pytest.raises(ValueError, match=r"resnt20.*did you mean 'resnet"):
        create_model("resnt20", 10)
    with pytest.raises(ValueError, match=r"mpl.*did you mean 'mlp'"):
        create_model("mpl", 10)
    with pytest.raises(ValueError, match=r"option of resnet20 'widht'.*'width'"):
        create_model("resnet20", 10, widht=16)
    with pytest.raises(ValueError, match=r"option of mlp 'width'.*dtype, hidden"):
        create_model("mlp", 10, width=16)
    with pytest.raises(ValueError, match=r"vgg16.*'stem'"):
        create_model("vgg16", 10, stem="imagenet")
    with pytest.raises(ValueError, match=r"transformer.*expected one of dag4, lenet5, mlp, res"):
        create_model("transformer", 10)
    with pytest.raises(ValueError, match="option of resnet20 'depth'"):
        create_model("resnet20", 10, depth=32)
