"""Decoding and cropping, against Pillow's two steps and a loop in NumPy."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from cka_sr_jax.data.crops import center_crop, decode, random_box, random_crop
from tests.tfds_sets import jpeg, photographs, png


def resampled(pixels, size, axis):
    """Bilinear interpolation along an axis; where it shrinks, the triangle covers all it should."""
    pixels = np.moveaxis(np.asarray(pixels, np.float64), axis, 0)
    scale = len(pixels) / size
    width = max(scale, 1.0)
    rows = []
    for i in range(size):
        distances = np.abs(np.arange(len(pixels)) + 0.5 - (i + 0.5) * scale)
        weights = np.maximum(1 - distances / width, 0)
        rows.append(np.tensordot(weights / weights.sum(), pixels, 1))
    return np.moveaxis(np.stack(rows), 0, axis)


def assert_pixels(actual, expected, within=1.0):
    assert actual.dtype == np.uint8
    assert actual.shape == expected.shape
    assert np.abs(actual - np.asarray(expected, np.float64)).max() <= within


def test_a_png_is_decoded_to_its_pixels():
    ((color, _),) = photographs(1)
    np.testing.assert_array_equal(np.asarray(decode(png(color), 3)), color)
    gray = color[:, :, :1]
    np.testing.assert_array_equal(np.asarray(decode(png(gray), 1)), gray[:, :, 0])
    np.testing.assert_array_equal(np.asarray(decode(png(gray), 3)), gray.repeat(3, 2))


def test_a_jpeg_is_decoded_as_pillow_does():
    ((image, _),) = photographs(1)
    expected = np.asarray(Image.open(io.BytesIO(jpeg(image))))
    np.testing.assert_array_equal(np.asarray(decode(jpeg(image), 3)), expected)


def test_damaged_images_and_other_formats_are_refused():
    ((image, _),) = photographs(1)
    with pytest.raises(OSError, match="truncated"):
        decode(jpeg(image)[:-200], 3)
    bmp = io.BytesIO()
    Image.fromarray(image).save(bmp, "BMP")
    with pytest.raises(OSError, match="cannot identify"):
        decode(bmp.getvalue(), 3)


@pytest.mark.parametrize("size", [(50, 40), (40, 57), (33, 33), (20, 59)])  # width, height
def test_the_center_crop_is_the_center_of_the_scaled_image(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3)).astype(np.uint8))
    side, short = 28, 32  # 256/224 of it
    width, height = (short * length // min(size) for length in size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    box = np.s_[top : top + side, left : left + side]
    actual = center_crop(image, side)
    by_pillow = image.resize((width, height), Image.Resampling.BILINEAR)
    assert_pixels(actual, np.asarray(by_pillow)[box])
    assert_pixels(actual, resampled(resampled(image, width, 1), height, 0)[box])


def test_the_center_crop_of_a_strip_takes_no_more_memory_than_the_strip():
    strip = Image.fromarray(np.full((1, 60000), 7, np.uint8))
    np.testing.assert_array_equal(center_crop(strip, 224), np.full((224, 224, 1), 7, np.uint8))


def test_the_random_crop_is_its_box_scaled():
    for seed, (pixels, _) in enumerate(photographs(6)):
        image = Image.fromarray(pixels)
        left, top, right, bottom = random_box(np.random.default_rng(seed), *image.size)
        part = pixels[top:bottom, left:right]
        actual = random_crop(np.random.default_rng(seed), image, 24)
        # Pillow rounds between its two passes.
        assert_pixels(actual, resampled(resampled(part, 24, 1), 24, 0), 1.01)


def test_random_boxes_are_those_of_the_recipe():
    rng = np.random.default_rng(0)
    width, height = 1000, 1000
    boxes = np.array([random_box(rng, width, height) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= width).all()
    assert (bottom <= height).all()
    w, h = right - left, bottom - top
    area, ratio = w * h / (width * height), np.log(w / h)
    assert 0.0795 <= area.min() <= 0.09
    assert 0.9 <= area.max() <= 1
    assert abs(ratio).max() <= math.log(4 / 3) + 0.01
    # Up to three quarters of the area every ratio fits, so the draws are uniform there.
    small = (area <= 0.74) & (w < width) & (h < height)
    for values, low, high in (
        (area[small], 0.08, 0.74),
        (ratio[small], -math.log(4 / 3), math.log(4 / 3)),
        (left[small] / (width - w)[small], 0, 1),
        (top[small] / (height - h)[small], 0, 1),
    ):
        quartiles = (np.quantile(values, [0.25, 0.5, 0.75]) - low) / (high - low)
        np.testing.assert_allclose(quartiles, [0.25, 0.5, 0.75], atol=0.04)


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 9), (494, 0, 506, 9)), ((9, 1000), (0, 494, 9, 506)), ((1, 1), (0, 0, 1, 1))],
)
def test_where_no_box_fits_it_is_the_largest_in_the_center(size, box):
    assert {random_box(np.random.default_rng(seed), *size) for seed in range(5)} == {box}
