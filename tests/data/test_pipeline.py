"""Batches and augmentation, against naive loops and properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cka_sr_jax.data import (
    augment,
    batch_indices,
    channel_statistics,
    epoch_order,
    eval_batches,
    normalize,
)

RNG = np.random.default_rng(0)
augment_jit = jax.jit(augment, static_argnames=("flip", "pad", "pad_mode"))


def views(image, *, flip, pad, pad_mode):
    """Every result the augmentation may have, in NumPy: {bytes of it: (flipped, row, col)}."""
    mode = "reflect" if pad_mode == "reflect" else "constant"
    height, width, _ = image.shape
    possible = {}
    for flipped in (False, True) if flip else (False,):
        source = image[:, ::-1] if flipped else image
        padded = np.pad(source, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
        for row in range(2 * pad + 1):
            for col in range(2 * pad + 1):
                view = padded[row : row + height, col : col + width]
                possible[view.tobytes()] = (flipped, row, col)
    return possible


# ---- order of the examples ----


@given(
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
    size=st.integers(1, 60),
    data=st.data(),
)
def test_each_epoch_is_the_prefix_of_a_permutation(seed, epoch, size, data):
    batch = data.draw(st.integers(1, size))
    steps = size // batch
    batches = [batch_indices(seed, epoch * steps + i, size, batch) for i in range(steps)]
    seen = np.concatenate(batches)
    assert seen.dtype == np.int32
    assert len(set(seen.tolist())) == steps * batch
    assert set(seen.tolist()) <= set(range(size))
    np.testing.assert_array_equal(seen, epoch_order(seed, epoch, size)[: steps * batch])


@given(seed=st.integers(0, 99), steps=st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_a_batch_depends_on_seed_and_step_alone(seed, steps):
    uninterrupted = {step: batch_indices(seed, step, 23, 4).copy() for step in sorted(set(steps))}
    epoch_order.cache_clear()
    for step in steps:
        np.testing.assert_array_equal(batch_indices(seed, step, 23, 4), uninterrupted[step])


def test_seeds_and_epochs_have_their_own_orders():
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_of_an_epoch_never_changes():
    """These numbers are what makes an old run reproducible."""
    assert epoch_order(17, 3, 10).tolist() == [0, 4, 7, 8, 5, 2, 6, 1, 9, 3]
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(17, 3, 10)[0] = 1


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_a_batch_size_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match=rf"batch size is {batch_size}; expected 1 to 10"):
        batch_indices(0, 0, 10, batch_size)


@pytest.mark.parametrize(("size", "batch"), [(10, 4), (8, 4), (3, 5), (1, 1), (0, 4)])
def test_evaluation_weighs_every_example_once(size, batch):
    weight = np.zeros(max(size, 1))
    for indices, weights in eval_batches(size, batch):
        assert (indices.shape, indices.dtype) == ((batch,), np.int32)
        assert (weights.shape, weights.dtype) == ((batch,), np.float32)
        np.add.at(weight, indices, weights)
    np.testing.assert_array_equal(weight[:size], np.ones(size))
    assert len(list(eval_batches(size, batch))) == -(-size // batch)


def test_an_evaluation_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="expected 1 or more"):
        list(eval_batches(10, 0))


# ---- augmentation ----


@pytest.mark.parametrize("pad_mode", ["reflect", "zero"])
@pytest.mark.parametrize(("flip", "pad"), [(True, 2), (True, 0), (False, 2), (False, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_augmented_images_are_the_possible_views(flip, pad, pad_mode, dtype):
    images = RNG.integers(1, 255, (300, 5, 6, 2)).astype(dtype)
    options = {"flip": flip, "pad": pad, "pad_mode": pad_mode}
    result = np.asarray(augment_jit(jax.random.key(1), jnp.arange(300), images, **options))
    assert (result.dtype, result.shape) == (images.dtype, images.shape)
    drawn = {
        views(image, **options)[out.tobytes()] for image, out in zip(images, result, strict=True)
    }
    # 300 draws: a view of 50 is missed by all of them with a probability of 0.2 %.
    assert len(drawn) >= 0.95 * (2 * pad + 1) ** 2 * (1 + flip)


def test_flips_and_shifts_are_uniform_and_independent():
    image = RNG.integers(1, 255, (4, 4, 1)).astype(np.uint8)
    count = 18_000
    images = np.broadcast_to(image, (count, *image.shape))
    options = {"flip": True, "pad": 1, "pad_mode": "zero"}
    result = np.asarray(augment_jit(jax.random.key(2), jnp.arange(count), images, **options))
    places = sorted(views(image, **options).values())
    assert len(places) == 18
    possible = views(image, **options)
    counts = dict.fromkeys(places, 0)
    for out in result:
        counts[possible[out.tobytes()]] += 1
    # Chi-squared with 17 degrees of freedom exceeds 40.8 with a probability of 0.1 %.
    assert sum((c - count / 18) ** 2 / (count / 18) for c in counts.values()) < 40.8


@settings(max_examples=20)
@given(order=st.permutations(range(12)), split=st.sampled_from([1, 6]), seed=st.integers(0, 2**31))
def test_the_result_does_not_depend_on_how_the_batch_is_split(order, split, seed):
    images = RNG.integers(0, 255, (12, 4, 4, 1)).astype(np.uint8)
    indices = np.random.default_rng(seed).permutation(1000)[:12].astype(np.int32)
    options = {"flip": True, "pad": 1, "pad_mode": "reflect"}
    key = jax.random.key(seed)
    whole = np.asarray(augment_jit(key, indices, images, **options))
    part = np.asarray(order)[:split]
    result = np.asarray(augment_jit(key, indices[part], images[part], **options))
    np.testing.assert_array_equal(result, whole[part])


def test_split_over_devices_the_batch_is_augmented_the_same():
    images = RNG.integers(0, 255, (8, 4, 4, 1)).astype(np.uint8)
    indices = np.arange(100, 108, dtype=np.int32)
    options = {"flip": True, "pad": 1, "pad_mode": "zero"}
    key = jax.random.key(3)
    mapped = jax.pmap(lambda i, x: augment(key, i, x, **options))
    split = mapped(indices.reshape(4, 2), images.reshape(4, 2, 4, 4, 1))
    whole = augment_jit(key, indices, images, **options)
    np.testing.assert_array_equal(np.asarray(split).reshape(images.shape), np.asarray(whole))


def test_each_step_augments_an_image_anew():
    images = RNG.integers(0, 255, (32, 6, 6, 1)).astype(np.uint8)
    options = {"flip": True, "pad": 2, "pad_mode": "zero"}
    keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(2)]
    first, second = (np.asarray(augment_jit(key, np.arange(32), images, **options)) for key in keys)
    assert np.mean(np.all(first == second, axis=(1, 2, 3))) < 0.3


def test_raw_keys_draw_what_typed_keys_draw():
    images = RNG.integers(0, 255, (4, 4, 4, 1)).astype(np.uint8)
    options = {"flip": True, "pad": 1, "pad_mode": "zero"}
    typed = augment_jit(jax.random.key(5), np.arange(4), images, **options)
    raw = augment_jit(jax.random.PRNGKey(5), np.arange(4), images, **options)
    np.testing.assert_array_equal(np.asarray(typed), np.asarray(raw))


def test_unknown_augmentations_are_refused():
    images = np.zeros((1, 4, 4, 1), np.uint8)
    with pytest.raises(ValueError, match="pad is -1; expected 0"):
        augment(jax.random.key(0), np.arange(1), images, flip=True, pad=-1, pad_mode="zero")
    with pytest.raises(ValueError, match="'edge'; expected 'reflect' or 'zero'"):
        augment(jax.random.key(0), np.arange(1), images, flip=True, pad=1, pad_mode="edge")


# ---- normalization ----


@pytest.mark.parametrize("shape", [(5, 4, 4, 3), (2, 5, 4, 4, 1)])
def test_normalize_is_the_formula(shape):
    images = RNG.integers(0, 256, shape).astype(np.uint8)
    mean, std = (0.5, 0.4, 0.3)[: shape[-1]], (0.1, 0.2, 0.3)[: shape[-1]]
    result = jax.jit(normalize, static_argnums=(1, 2))(images, mean, std)
    assert result.dtype == jnp.float32
    expected = (images.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_normalize_refuses_what_does_not_fit():
    images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
    with pytest.raises(ValueError, match="1 means and 3 standard deviations; expected one per"):
        normalize(images, (0.5,), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="expected positive ones"):
        normalize(images, (0.5,) * 3, (1.0, 0.0, 1.0))


@pytest.mark.parametrize("count", [1, 999, 1000, 2300])
def test_channel_statistics_are_numpys(count):
    images = RNG.integers(0, 256, (count, 4, 3, 3)).astype(np.uint8)
    images[..., 1] = 255
    mean, std = channel_statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-9, atol=1e-9)
    assert std[1] == 0


def test_statistics_make_normalized_images_standard():
    images = RNG.integers(0, 256, (64, 4, 4, 3)).astype(np.uint8)
    result = np.asarray(normalize(jnp.asarray(images), *channel_statistics(images)))
    np.testing.assert_allclose(result.mean((0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(result.std((0, 1, 2)), 1, rtol=1e-6)


@pytest.mark.parametrize("images", [np.zeros((0, 4, 4, 1), np.uint8), np.zeros((2, 4, 4, 1))])
def test_statistics_of_something_else_are_refused(images):
    with pytest.raises(ValueError, match="expected uint8 and at least one"):
        channel_statistics(images)
