"""Features out of Linen (sow, capture_intermediates) and NNX models: groups, order, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cka_sr_jax.models import create_model
from cka_sr_jax.similarity import cka_penalty, stage_features

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (6, 8))
WIDTHS = (8,) * 6 + (5,) * 6  # two stages of six blocks


def inside_jit(record, x):
    """`stage_features` in the traced function that records; a list, as jit would sort a dict."""
    names = []

    def groups(x):
        features = stage_features(record(x))
        names.extend(features)
        return list(features.values())

    return dict(zip(names, jax.jit(groups)(x), strict=True))


RUNS = {
    "eager": lambda record, x: stage_features(record(x)),
    "inside jit": inside_jit,
    "on what jit returned": lambda record, x: stage_features(jax.jit(record)(x)),
    "on the aux of grad": lambda record, x: stage_features(
        jax.grad(lambda x: (x.sum(), record(x)), has_aux=True)(x)[1]
    ),
}
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS.keys())


def assert_same(features, expected):
    """The same groups in the same order, of the same arrays."""
    assert list(features) == list(expected)
    for name, group in expected.items():
        assert isinstance(features[name], tuple)
        assert len(features[name]) == len(group)
        for x, y in zip(features[name], group, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


# --- Linen


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.tanh(nn.Dense(self.width)(x))


class LinenNet(nn.Module):
    """Twelve blocks, Block_0 to Block_11; sows one name a block, one a stage, or nothing."""

    sow_by: str = ""

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(WIDTHS):
            x = Block(width)(x)
            if self.sow_by == "block":
                self.sow("features", f"block{i}", x)
            elif self.sow_by == "stage":
                self.sow("features", "late" if width == 8 else "early", x)
        return nn.Dense(3, name="head")(x)


def linen_params(model, x=X):
    return {"params": model.init(KEY, x)["params"]}


PARAMS = linen_params(LinenNet())


def linen_blocks():
    """The twelve outputs, one block at a time."""
    outputs, x = [], X
    for i, width in enumerate(WIDTHS):
        x = Block(width).apply({"params": PARAMS["params"][f"Block_{i}"]}, x)
        outputs.append(x)
    return tuple(outputs)


def sow(sow_by):
    return lambda x: LinenNet(sow_by).apply(PARAMS, x, mutable=["features"])[1]["features"]


def capture(model, variables, which=True):
    """What `capture_intermediates` records, as a function of x."""
    return lambda x: model.apply(
        variables, x, capture_intermediates=which, mutable=["intermediates"]
    )[1]["intermediates"]


def is_block(module, method):
    return isinstance(module, Block)


@every_run
def test_sown_stages_are_the_groups(run):
    outputs = linen_blocks()
    assert_same(run(sow("stage"), X), {"early": outputs[6:], "late": outputs[:6]})


@every_run
def test_sown_names_come_in_natural_order(run):
    expected = {f"block{i}": (x,) for i, x in enumerate(linen_blocks())}
    assert_same(run(sow("block"), X), expected)


@every_run
def test_captured_blocks_are_grouped_by_shape_in_natural_order(run):
    outputs = linen_blocks()
    record = capture(LinenNet(), PARAMS, is_block)
    assert_same(run(record, X), {"stage1": outputs[:6], "stage2": outputs[6:]})


@every_run
def test_all_outputs_come_innermost_first(run):
    features = run(capture(LinenNet(), PARAMS), X)
    outputs = linen_blocks()
    assert list(features) == ["stage1", "stage2", "stage3"]
    assert_same(
        {"stage1": features["stage1"][1::2], "stage2": features["stage2"][1::2]},
        {"stage1": outputs[:6], "stage2": outputs[6:]},
    )  # each block after the Dense in it
    assert [x.shape for x in features["stage3"]] == [(6, 3), (6, 3)]  # head, and the model


class Unsorted(nn.Module):
    """Runs z, then a, then m; with `remat`, each as a checkpoint."""

    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block) if self.remat else Block
        x = block(8, name="z")(x)
        x = block(5, name="a")(x)
        return block(8, name="m")(x)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("run", [RUNS["eager"], RUNS["inside jit"]])
def test_linen_keeps_the_order_of_execution_where_it_recorded(run, remat):
    model = Unsorted(remat)
    record = capture(model, linen_params(model), is_block)
    features = run(record, X)
    assert [[x.shape for x in group] for group in features.values()] == [
        [(6, 8)],
        [(6, 5)],
        [(6, 8)],
    ]


def test_linen_loses_the_order_of_execution_on_leaving_jit():
    record = capture(Unsorted(), linen_params(Unsorted()), is_block)
    features = RUNS["on what jit returned"](record, X)  # a, m, z
    assert [[x.shape for x in group] for group in features.values()] == [
        [(6, 5)],
        [(6, 8), (6, 8)],
    ]


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, x):
        first, second = Block(8, name="first"), Block(8, name="second")
        return second(first(second(first(x))))


@every_run
def test_all_calls_of_a_module_come_at_its_first(run):
    params = linen_params(Recurrent())
    first, second = (
        lambda x, name=name: Block(8).apply({"params": params["params"][name]}, x)
        for name in ("first", "second")
    )
    x1, x2, x3, x4 = (
        first(X),
        second(first(X)),
        first(second(first(X))),
        second(first(second(first(X)))),
    )
    record = capture(Recurrent(), params, is_block)
    assert_same(run(record, X), {"stage1": (x1, x3, x2, x4)})


class CNN(nn.Module):
    """The shape of Flax's MNIST example."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(features=4, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.Conv(features=8, kernel_size=(3, 3))(x)
        x = nn.relu(x)
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = x.reshape((x.shape[0], -1))
        x = nn.Dense(features=16)(x)
        x = nn.relu(x)
        return nn.Dense(features=10)(x)


@pytest.mark.usefixtures("standard_promotion")
@every_run
def test_flax_example_cnn(run):
    images = jax.random.normal(KEY, (6, 8, 8, 1))
    params = jax.jit(lambda: linen_params(CNN(), images))()
    record = capture(CNN(), params)
    features = run(record, images)
    assert [[x.shape for x in group] for group in features.values()] == [
        [(6, 8, 8, 4)],
        [(6, 4, 4, 8)],
        [(6, 16)],
        [(6, 10), (6, 10)],  # the last Dense, and the model
    ]
    assert np.isfinite(cka_penalty(features, pairs="all"))


def test_resnet_features_go_through_unchanged():
    model = create_model("resnet14", 3, width=2)
    x = jax.random.normal(KEY, (4, 8, 8, 1))

    def record(x):
        variables = model.init(KEY, x, train=True)
        _, mutables = model.apply(variables, x, train=True, mutable=["features", "batch_stats"])
        return mutables["features"]

    recorded = jax.jit(record)(x)
    features = stage_features(recorded)
    assert list(features) == ["stage1", "stage2", "stage3"]
    assert_same(features, recorded)


def test_gradient_through_captured_features_is_that_of_sown_ones():
    def penalty(params, record):
        features = stage_features(record(params))
        return cka_penalty(features)

    def sown(params):
        return LinenNet("stage").apply(params, X, mutable=["features"])[1]["features"]

    def captured(params):
        return capture(LinenNet(), params, is_block)(X)

    grad = jax.jit(jax.grad(penalty), static_argnums=1)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        grad(PARAMS, sown),
        grad(PARAMS, captured),
    )


# --- NNX


class NnxBlock(nnx.Module):
    def __init__(self, inputs, width, sow, rngs):
        self.dense = nnx.Linear(inputs, width, rngs=rngs)
        self.should_sow = sow

    def __call__(self, x):
        x = nnx.tanh(self.dense(x))
        if self.should_sow:
            self.sow(nnx.Intermediate, "out", x)
        return x


# Flax 0.11 has neither; there sown values are popped, and a list of modules is a plain list.
HAS_CAPTURE = hasattr(nnx, "capture")
needs_capture = pytest.mark.skipif(not HAS_CAPTURE, reason="flax 0.11 has no nnx.capture")
nnx_list = getattr(nnx, "List", list)


class NnxNet(nnx.Module):
    """Twelve blocks in a list; sows in each block, by stage at the top, or nothing."""

    def __init__(self, sow_in="", rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.blocks = nnx_list(
            NnxBlock(inputs, width, sow_in == "block", rngs)
            for inputs, width in zip((8, *WIDTHS), WIDTHS, strict=False)
        )
        self.head = nnx.Linear(WIDTHS[-1], 3, rngs=rngs)
        self.sow_in = sow_in

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
            if self.sow_in == "top":
                self.sow(nnx.Intermediate, "stage1" if x.shape[-1] == 8 else "stage2", x)
        return self.head(x)


def nnx_blocks():
    outputs, x = [], X
    for block in NnxNet().blocks:
        x = block(x)
        outputs.append(x)
    return tuple(outputs)


def nnx_record(sow_in="", **options):
    graph, state = nnx.split(NnxNet(sow_in))

    def record(x):
        model = nnx.merge(graph, state)
        if HAS_CAPTURE:
            return nnx.capture(model, nnx.Intermediate, **options)(x)[1]
        model(x)
        return nnx.pop(model, nnx.Intermediate)

    return record


@every_run
@pytest.mark.parametrize("sow_in", ["block", "top"])
def test_nnx_sow(run, sow_in):
    outputs = nnx_blocks()
    assert_same(run(nnx_record(sow_in), X), {"stage1": outputs[:6], "stage2": outputs[6:]})


@needs_capture
@every_run
def test_nnx_method_outputs(run):
    record = nnx_record(method_outputs=nnx.Intermediate)
    features = run(record, X)
    outputs = nnx_blocks()
    assert list(features) == ["stage1", "stage2", "stage3"]
    assert_same(
        {"stage1": features["stage1"][1::2], "stage2": features["stage2"][1::2]},
        {"stage1": outputs[:6], "stage2": outputs[6:]},
    )
    blocks = stage_features(record(X), include="blocks/*/__call__")
    assert_same(blocks, {"stage1": outputs[:6], "stage2": outputs[6:]})


@needs_capture
def test_nnx_jit_and_value_and_grad():
    @nnx.jit
    def loss_and_grad(model, x):
        def penalty(model):
            _, recorded = nnx.capture(model, nnx.Intermediate)(x)
            return cka_penalty(stage_features(recorded))

        return nnx.value_and_grad(penalty)(model)

    value, grads = loss_and_grad(NnxNet("block"), X)
    outputs = nnx_blocks()
    expected = cka_penalty({"stage1": outputs[:6], "stage2": outputs[6:]})
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


# --- include


@pytest.mark.parametrize(
    ("include", "widths"),
    [
        ("Block_*/__call__", [8] * 6 + [5] * 6),
        (["Block_1/__call__", "Block_10/__call__"], [8, 5]),
        (["head", "Block_1?/__call__"], [5, 5, 3]),  # always in order of execution
        (("*/Dense_0/__call__",), [8] * 6 + [5] * 6),
    ],
)
def test_include_takes_the_matching_paths(include, widths):
    features = stage_features(capture(LinenNet(), PARAMS)(X), include)
    assert [x.shape[-1] for group in features.values() for x in group] == widths


def test_include_names_sown_groups():
    assert list(stage_features(sow("stage")(X), include="early")) == ["early"]


def test_include_that_matches_nothing_lists_the_paths():
    with pytest.raises(ValueError, match=r"'Blok_\*' matches none.*: Block_0/__call__, Block_1/"):
        stage_features(capture(LinenNet(), PARAMS, is_block)(X), ["Block_0/*", "Blok_*"])


# --- errors


@pytest.mark.parametrize(
    ("recorded", "message"),
    [
        ({}, "no features were recorded: sow"),
        ({"stage1": ()}, "no features were recorded"),
        ((X, X), "a tuple is not a collection"),
        ({"stage1": (X, X[:4])}, r"'stage1' of shape \(4, 8\) does not share.*\(6, 8\)"),
        ({"block": {"a": (X,)}, "rate": (jnp.float32(0.1),)}, "'rate' is a scalar"),
        ({"block": {"a": (X, "relu")}}, "'block/a' is a str, not an array"),
        ({"stage1": (X, 3.0)}, "'stage1' is a float, not an array"),
    ],
)
def test_errors_say_what_to_pass(recorded, message):
    with pytest.raises(ValueError, match=message):
        stage_features(recorded)


class Scanned(nn.Module):
    """A block that sows its output, in a loop or inside `nn.scan`."""

    scan: bool = False

    @nn.compact
    def __call__(self, x):
        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                x = x + nn.tanh(nn.Dense(3)(x))
                self.sow("features", "block", x)
                return x, None

        if not self.scan:
            for i in range(4):
                x, _ = Block(name=f"block{i}")(x, None)
            return x
        axes = {"variable_axes": {"params": 0, "features": 0}, "split_rngs": {"params": True}}
        return nn.scan(Block, **axes, length=4)(name="blocks")(x, None)[0]


def test_what_a_scan_stacked_is_split_into_its_layers():
    x = jax.random.normal(KEY, (6, 3))
    params = Scanned().init(KEY, x)["params"]
    blocks = [params[f"block{i}"] for i in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    _, loop = Scanned().apply({"params": params}, x, mutable=["features"])
    _, scan = Scanned(True).apply({"params": {"blocks": stacked}}, x, mutable=["features"])
    (expected,) = stage_features(loop["features"]).values()
    (found,) = stage_features(scan["features"], stacked={"block": 1}).values()
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    with pytest.raises(ValueError, match=r"stacked=.'block': 3. does not fit feature"):
        stage_features(scan["features"], stacked={"block": 3})
    with pytest.raises(ValueError, match="stacked pattern 'blok' matches none"):
        stage_features(scan["features"], stacked={"blok": 1})
