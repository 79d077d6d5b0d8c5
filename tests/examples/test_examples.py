"""Each example runs as a script and prints its proof; the README lists them all."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from flax import nnx

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


def run(name, capsys):
    """What the example prints, under JAX's own settings, as a reader has them."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def losses(printed):
    """(first, last) of each loss that is printed."""
    found = re.findall(r"loss (\d+\.\d+) -> (\d+\.\d+)", printed)
    return [(float(first), float(last)) for first, last in found]


def density(printed, row="pruned together"):
    """The density in a row of the printed summary."""
    return float(re.search(rf"^{row} .*? (\d\.\d+|1)$", printed, re.M)[1])


@pytest.mark.slow
def test_linen_loop(capsys):
    printed = run("linen_loop", capsys)
    ((first, last),) = losses(printed)
    assert last < 0.2 * first
    before, after = re.search(r"mean CKA between layers (\S+) -> (\S+)", printed).groups()
    assert float(after) < float(before)
    assert density(printed) == pytest.approx(0.2, abs=0.001)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(nnx, "capture"), reason="flax 0.11's nnx.Optimizer takes no masked states"
)
def test_nnx_optimizer(capsys):
    printed = run("nnx_optimizer", capsys)
    ((first, last),) = losses(printed)
    assert last < 0.2 * first
    assert density(printed) == pytest.approx(0.1, abs=0.001)
    rows = re.findall(r"^CKA of \w+/out with each: (.*)$", printed, re.M)
    assert [float(row.split()[i]) for i, row in enumerate(rows)] == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_train_state(capsys):
    printed = run("train_state", capsys)
    steps = re.findall(r"loss (\S+), density (\S+)", printed)
    kept = [float(share) for _, share in steps]
    assert kept[0] == 0.5
    assert kept == sorted(kept, reverse=True)
    assert [kept[-1], density(printed)] == pytest.approx([0.1, 0.1], abs=0.001)
    assert float(re.search(r"step 200: loss (\S+)", printed)[1]) < 0.2 * float(steps[0][0])


@pytest.mark.slow
def test_transformer(capsys):
    printed = run("transformer", capsys)
    ((first, last),) = losses(printed)
    assert last < 0.3 * first
    assert density(printed) == pytest.approx(0.25, abs=0.001)
    assert density(printed, "block0/attention/out/kernel") < 1
    for dense in ("Embed_0/embedding", "positions", "head/kernel", "block0/attention/key/bias"):
        assert density(printed, dense) == 1


def test_fine_tune(capsys):
    printed = run("fine_tune", capsys)
    dense, cut, tuned = map(float, re.findall(r"loss (\S+)$", printed, re.M))
    assert dense < tuned < 0.5 * cut
    assert density(printed) == pytest.approx(0.2, abs=0.001)


def test_masks_from_elsewhere(capsys):
    printed = run("masks_from_elsewhere", capsys)
    (_, fixed), (_, moving) = losses(printed)
    assert moving < fixed
    still, moved = map(int, re.findall(r"(\d+) weights moved", printed))
    assert still == 0 < moved
    assert density(printed) == pytest.approx(0.1, abs=0.001)


@pytest.mark.slow
def test_custom_score(capsys):
    printed = run("custom_score", capsys)
    for first, last in losses(printed):
        assert last < 0.5 * first
    gradient, scarce = map(int, re.findall(r"(\d+) inputs without a connection", printed))
    assert scarce < gradient
    assert density(printed) == pytest.approx(0.05, abs=0.001)


@pytest.mark.slow
def test_several_devices_by_the_command_in_it():
    """In a process of its own, which the command gives four devices."""
    flags = "--xla_force_host_platform_device_count=4"
    text = (EXAMPLES / "several_devices.py").read_text()
    assert f"XLA_FLAGS={flags} NPROC=8 python examples/several_devices.py" in text
    done = subprocess.run(
        [sys.executable, EXAMPLES / "several_devices.py"],
        env={**os.environ, "XLA_FLAGS": flags, "NPROC": "8", "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ((first, last),) = losses(done.stdout)
    assert last < 0.3 * first
    assert done.stdout.startswith("4 devices: ")
    assert "equal masks on all devices: True" in done.stdout


@pytest.mark.slow
def test_layer_sparsity(capsys):
    printed = run("layer_sparsity", capsys)
    ((first, last),) = losses(printed)
    assert last < 0.1 * first
    trained, merged = map(int, re.findall(r"(\d+) layers", printed))
    assert merged < trained == 5
    assert float(re.search(r"of their outputs: (\S+)", printed)[1]) < 1e-4


def test_every_example_is_short_tested_and_listed():
    readme = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text()
    assert len(FILES) == 9
    for file in FILES:
        assert len(file.read_text().splitlines()) < 100
        assert f"[{file.name}]({file.name})" in readme
        assert f'"{file.stem}' in tests
    assert {name for name in re.findall(r"\((\w+\.py)\)", readme)} == {f.name for f in FILES}
