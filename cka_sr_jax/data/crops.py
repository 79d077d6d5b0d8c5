"""Images of any size, decoded and cut to squares of one size by Pillow: the ImageNet recipe.

Training takes a random part of each image, evaluation its center (Szegedy et al. 2015, arXiv
1409.4842; Krizhevsky et al. 2012).
"""

from __future__ import annotations

import io
import math

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Of the image: the least share of its area, and the extreme ratios of width to height.
LEAST_AREA, NARROWEST, WIDEST = 0.08, 3 / 4, 4 / 3
ATTEMPTS = 10
# Evaluation scales the shorter side to this multiple of the crop.
MARGIN = 256 / 224
FORMATS = ("JPEG", "PNG")  # what TFDS stores
MODES = {1: "L", 3: "RGB"}  # Pillow's, by the number of channels


def decode(data: bytes, channels: int) -> Image.Image:
    """The image of a JPEG or PNG file, in gray (1 channel) or in color (3).

    Raises:
      OSError, SyntaxError, ValueError: the data are damaged, or of another format.
      PIL.Image.DecompressionBombError: it is too large to be a photograph.
    """
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.mode != MODES[channels]:
        return image.convert(MODES[channels])
    image.load()  # here, so that damage is noticed here
    return image


def random_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
    """A random part of an image as (left, top, right, bottom) in pixels.

    Its area is uniform in 8 to 100 % of the image's, the logarithm of its ratio of width to height
    is uniform between those of 3/4 and 4/3, and so is its place among those inside. After ten draws
    that do not fit it is the largest box of such a ratio, in the center.
    """
    for _ in range(ATTEMPTS):
        area = width * height * rng.uniform(LEAST_AREA, 1)
        ratio = math.exp(rng.uniform(math.log(NARROWEST), math.log(WIDEST)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    ratio = min(max(width / height, NARROWEST), WIDEST)
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def random_crop(
    rng: np.random.Generator, image: Image.Image, side: int
) -> UInt8[np.ndarray, "side side c"]:
    """The part of the image in a `random_box`, scaled to a square by bilinear interpolation."""
    part = image.crop(random_box(rng, *image.size))
    return _pixels(part.resize((side, side), Image.Resampling.BILINEAR))


def center_crop(image: Image.Image, side: int) -> UInt8[np.ndarray, "side side c"]:
    """The central square of the image whose shorter side is scaled to side * 256 / 224."""
    short = round(side * MARGIN)

    def ends(length: int) -> tuple[float, float]:
        """Where the square begins and ends, in the image's own pixels."""
        scaled = short * length // min(image.size)
        first = round((scaled - side) / 2)
        return first * length / scaled, (first + side) * length / scaled

    (left, right), (top, bottom) = map(ends, image.size)
    # What lies outside of the square need not be scaled.
    box = (left, top, right, bottom)
    return _pixels(image.resize((side, side), Image.Resampling.BILINEAR, box=box))


def _pixels(image: Image.Image) -> UInt8[np.ndarray, "h w c"]:
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]
