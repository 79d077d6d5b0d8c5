"""Neural tangent transfer and the tangent kernel against their definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cka_sr_jax.sparsity import leaf_paths, random_masks, static
from cka_sr_jax.sparsity.tangent_transfer import ntt, tangent_kernel, transfer_loss

WIDTHS = (12, 24, 3)


@jax.jit  # eager dispatch is slow
def model(params, x):
    return jnp.tanh(x @ params["w0"] + params["bias"][None]) @ params["w1"]


def linear(params, x):
    return x @ params


def make_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    shapes = itertools.pairwise(WIDTHS)
    params = {
        f"w{i}": jax.random.normal(key, shape) / shape[0] ** 0.5
        for i, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }
    return params | {"bias": jnp.full(WIDTHS[1], 0.1, jnp.float32)}


def make_batches(count, size=8, seed=1):
    return list(np.array(jax.random.normal(jax.random.key(seed), (count, size, WIDTHS[0]))))


def kept(masks):
    return {path: int(mask.sum()) for path, mask in leaf_paths(masks)}


def jacobian(params, x):
    """[b, k, parameters]."""
    leaves = jax.tree.leaves(jax.jit(jax.jacobian(model))(params, x))
    return np.concatenate([np.reshape(leaf, (*leaf.shape[:2], -1)) for leaf in leaves], axis=2)


def test_the_kernel_is_the_product_of_the_jacobians():
    params, (x1, x2) = make_params(), make_batches(2)
    x2 = x2[:5]
    expected = np.einsum("iap,jbp->ijab", jacobian(params, x1), jacobian(params, x2))
    kernel = tangent_kernel(model, params, x1, x2)
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-5)


def test_the_kernel_of_a_linear_model_is_the_gram_matrix():
    x1, x2 = make_batches(2)
    kernel = tangent_kernel(linear, jnp.ones((WIDTHS[0], 2)), x1, x2)
    np.testing.assert_allclose(kernel, np.einsum("ij,ab->ijab", x1 @ x2.T, np.eye(2)), rtol=1e-5)


def test_the_kernel_of_low_precision_models_is_float32():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), make_params())
    x = make_batches(1)[0].astype(jnp.bfloat16)
    kernel = tangent_kernel(model, params, x, x)
    assert kernel.dtype == jnp.float32
    x = x.astype(jnp.float32)
    np.testing.assert_allclose(kernel, tangent_kernel(model, make_params(), x, x), atol=0.3)


def test_the_loss_is_its_formula():
    teacher, student, x = make_params(0), make_params(1), make_batches(1)[0]
    masks = random_masks(jax.random.key(0), student, {"w0": 60, "w1": 30})
    sparse = {path: np.array(leaf) for path, leaf in student.items()}
    for path, mask in leaf_paths(masks):
        sparse[path][~np.array(mask)] = 0
    difference, count = 0.0, 0
    for s1, t1 in zip(jacobian(sparse, x[:4]), jacobian(teacher, x[:4]), strict=True):
        for s2, t2 in zip(jacobian(sparse, x[4:]), jacobian(teacher, x[4:]), strict=True):
            difference += np.sum((s1 @ s2.T - t1 @ t2.T) ** 2)
            count += WIDTHS[-1] ** 2
    expected = (
        0.1 * difference / count
        + np.mean((np.array(model(sparse, x)) - np.array(model(teacher, x))) ** 2)
        + 0.01 / 0.2 * (np.sum(sparse["w0"] ** 2) + np.sum(sparse["w1"] ** 2))
    )
    loss = transfer_loss(model, student, masks, teacher, x, 0.2, kernel_weight=0.1, l2=0.01)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_counts_are_exact_and_the_same_in_each_run():
    params, batches = make_params(), make_batches(8)
    out = ntt(model, params, batches, 0.2, update_every=2, learning_rate=1e-2)
    assert kept(out.masks) == {"w0": 58, "w1": 14}
    assert isinstance(out.masks["bias"], optax.MaskedNode)
    assert (out.params["bias"] != params["bias"]).any()
    for path, mask in leaf_paths(out.masks):
        np.testing.assert_array_equal(out.params[path] == 0, ~mask)
    again = ntt(model, params, iter(batches), 0.2, update_every=2, learning_rate=1e-2)
    jax.tree.map(np.testing.assert_array_equal, out, again)
    static(out.masks).init(jax.random.key(0), params)

    excluded = ntt(model, params, batches[:2], 0.2, distribution={"w1": 0.5}, exclude="w0")
    assert kept(excluded.masks) == {"w1": 36}


def test_masks_are_drawn_anew_when_as_many_steps_follow():
    """With a large penalty the kept weights shrink below the pruned ones, so every draw shows."""
    params, batches = make_params()["w0"], make_batches(1) * 9

    def masks_after(steps):
        shrink = {"learning_rate": 0.05, "l2": 100.0, "kernel_weight": 0.0}
        return ntt(linear, params, batches[:steps], 0.3, update_every=3, **shrink).masks

    largest = jnp.abs(params) >= jnp.sort(jnp.abs(params), axis=None)[-86]
    np.testing.assert_array_equal(masks_after(1), largest)
    np.testing.assert_array_equal(masks_after(5), largest)
    assert (masks_after(6) != largest).any()
    np.testing.assert_array_equal(masks_after(6), masks_after(8))
    assert (masks_after(6) != masks_after(9)).any()


def test_pruned_weights_get_no_gradient():
    student, teacher, batch = make_params(), make_params(2), make_batches(1)[0]
    masks = random_masks(jax.random.key(0), student, {"w0": 90, "w1": 40})
    slopes = jax.jit(jax.grad(transfer_loss, 1), static_argnums=0)
    slopes = slopes(model, student, masks, teacher, batch, 0.3)
    for path, mask in leaf_paths(masks):
        np.testing.assert_array_equal(slopes[path] != 0, mask)


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_the_student_comes_closer_to_its_teacher_than_with_random_masks_on_average():
    params, batches = make_params(), make_batches(300)
    options = {"kernel_weight": 1e-2, "l2": 1e-6}

    def loss(student, masks, inputs):
        return transfer_loss(model, student, masks, params, inputs, 0.3, **options)

    @jax.jit
    def step(student, state, masks, inputs):
        updates, state = adam.update(jax.grad(loss)(student, masks, inputs), state)
        return optax.apply_updates(student, updates), state

    student, masks = ntt(
        model, params, batches, 0.3, learning_rate=5e-3, update_every=50, **options
    )
    held_out = make_batches(1, 64, seed=2)[0]
    adam, at_random = optax.adam(5e-3), []
    for seed in range(5):
        randomly = random_masks(jax.random.key(seed), params, kept(masks))
        other, state = params, adam.init(params)
        for inputs in batches:
            other, state = step(other, state, randomly, inputs)
        at_random.append(float(loss(other, randomly, held_out)))
    assert loss(student, masks, held_out) < 0.9 * np.mean(at_random)
    assert loss(student, masks, held_out) < 0.2 * loss(params, randomly, held_out)


def test_bad_input_is_one_sentence():
    params, batch = make_params(), make_batches(1)[0]
    for call, message in (
        (lambda: ntt(model, params, [batch], 0.0), "density=0.0 is not in"),
        (lambda: ntt(model, params, [batch], 0.1, update_every=0), "update_every=0 is not"),
        (lambda: ntt(model, params, [], 0.1), "no batches"),
        (lambda: ntt(model, params, [batch[:1]], 0.1), "a batch of 1 inputs"),
        (lambda: ntt(model, params, [batch, batch[:3]], 0.1), "a batch of 3 inputs"),
        (lambda: ntt(model, params, [batch], 0.1, exclude="x"), "'x' matches no parameter"),
        (lambda: ntt(model, params, [batch], 0.1, distribution="erx"), "did you mean"),
        (
            lambda: tangent_kernel(lambda p, x: model(p, x)[:, 0], params, batch, batch),
            r"outputs have shape \(8,\)",
        ),
    ):
        with pytest.raises(ValueError, match=message) as error:
            call()
        assert "\n" not in str(error.value)
