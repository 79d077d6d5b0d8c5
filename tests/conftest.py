"""Settings that every test runs under.

Four fake devices and no implicit promotion of ranks. Tests of the library, the models and the data
also allow no implicit promotion of dtypes. In them and in those of the report, every annotated
shape and type of the package is checked at each call (jaxtyping with beartype).
"""

import contextlib
import os
from importlib.metadata import version
from pathlib import Path

# Four fake CPU devices for the multi-device tests; NPROC sizes XLA's thread pool, which hangs on
# two cores without it. Tests compile far more than they compute, so XLA optimizes little. All are
# read when jax is first imported.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
    # Kernels without MLIR take a quarter off the time; XLA ends at a flag that it no longer has.
    # KERNELS=default tests those that users have: of the two, only these round an update alike
    # wherever it is computed, so that masks learned from updated weights are those of the weights.
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if version("jaxlib").startswith("0.10.") and os.environ.get("KERNELS") != "default"
        else ""
    ),
)
os.environ.setdefault("NPROC", "8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest
from hypothesis import settings

LIBRARY = ("similarity", "sparsity", "layer_sparsity", "accounting")
# Tests of these allow no implicit promotion of dtypes. Optax's schedules mix dtypes, so whole runs
# cannot be strict.
STRICT = (*LIBRARY, "models", "data")
# Tests of these check every annotated shape and type at each call. An int is a float, as for mypy.
CHECKED = (*STRICT, "report")
BEARTYPE = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook("cka_sr_jax", BEARTYPE)
jaxtyping.config.update("jaxtyping_disable", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("default")


def folder_of(path):
    """The folder of tests that a test is in; the file's name for those in none."""
    return path.relative_to(Path(__file__).parent).parts[0]


def pytest_collection_modifyitems(items):
    """Coverage is the library's, by its own tests: the tracer would slow the others by a sixth."""
    for item in items:
        folder = folder_of(item.path)
        if folder not in LIBRARY and not folder.endswith(".py"):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def strictness(request):
    """The checks that the test's folder asks for."""
    folder = folder_of(request.path)
    jaxtyping.config.update("jaxtyping_disable", folder not in CHECKED)
    with jax.numpy_dtype_promotion("strict" if folder in STRICT else "standard"):
        yield
    jaxtyping.config.update("jaxtyping_disable", True)


unpatched = pytest.raises


@contextlib.contextmanager
def raises(*args, **kwargs):
    """`pytest.raises` without the checks of annotations: the package must refuse, as for a user."""
    before = jaxtyping.config.jaxtyping_disable
    with unpatched(*args, **kwargs) as info:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield info
        finally:
            jaxtyping.config.update("jaxtyping_disable", before)


pytest.raises = raises


@pytest.fixture
def blank_images(monkeypatch):
    """Reports without drawing, a sixth of a small run's time; shared fixtures' runs are drawn."""
    monkeypatch.setattr("cka_sr_jax.report.write.to_png", lambda figure: b"")


@pytest.fixture
def standard_promotion():
    """For what mixes dtypes by itself: Optax's Adam, Flax's pooling and BatchNorm in bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def enable_x64():
    """Run one test with float64 available, and switch it off again."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
