"""Settings that every test runs under: four fake devices, no implicit rank promotion."""

import os

# Four fake CPU devices for the multi-device tests; NPROC sizes XLA's thread pool, which hangs on
# two cores without it. Tests compile far more than they compute, so XLA optimizes little. All are
# read when jax is first imported.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("NPROC", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("default")


@pytest.fixture
def enable_x64():
    """Run one test with float64 available, and switch it off again."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
