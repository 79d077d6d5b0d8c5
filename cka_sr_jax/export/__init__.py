"""Models as files that other programs read, and as sparse matrices.

- safetensors, dense with masks or only the kept weights: `save_safetensors`, `load_safetensors`
  (safetensors.py; needs the extra `export`).
- Kernels as sparse matrices of `jax.experimental.sparse`: `to_bcoo` (bcoo.py).
- A compiled program of inference that needs jax alone, by `jax.export`: `export_inference`,
  `load_inference` (inference.py).

Weights of torchvision and timm come in by `cka_sr_jax.models.from_torchvision`.
"""

from cka_sr_jax.export.bcoo import to_bcoo
from cka_sr_jax.export.inference import PLATFORMS, export_inference, load_inference
from cka_sr_jax.export.safetensors import Weights, load_safetensors, save_safetensors

__all__ = [
    "PLATFORMS",
    "Weights",
    "export_inference",
    "load_inference",
    "load_safetensors",
    "save_safetensors",
    "to_bcoo",
]
