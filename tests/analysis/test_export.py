"""`cka-sr export`: the tested weights of a run in a file for other programs."""

import json
import sys

import jax
import numpy as np
import pytest

from cka_sr_jax.analysis.export import export_run, main
from cka_sr_jax.data import normalize
from cka_sr_jax.export import load_inference, load_safetensors
from cka_sr_jax.models import create_model
from cka_sr_jax.training import Checkpoints

MEAN, STD = (0.3,), (0.4,)


@pytest.fixture
def folder(tmp_path):
    """A made-up finished run of an MLP on the digits, a third of its weights kept."""
    rng, run = np.random.default_rng(0), tmp_path / "run"
    run.mkdir()
    config = {
        "data": {"name": "digits", "mean": MEAN, "std": STD},
        "model": {"name": "mlp", "options": {"hidden": [5]}},
        "sparsity": {"rule": "rst"},
        "eval": {"select": "last"},
    }
    (run / "config.json").write_text(json.dumps(config))
    (run / "result.json").write_text(json.dumps({"test": {"loss": 1.0}}))
    params, masks = {}, {}
    for name, shape in {"hidden0": (64, 5), "head": (5, 10)}.items():
        mask = rng.random(shape) < 1 / 3
        kernel = np.where(mask, rng.normal(size=shape), 0).astype(np.float32)
        params[name] = {"kernel": kernel, "bias": np.ones(shape[-1], np.float32)}
        masks[name] = {"kernel": mask}
    checkpoints = Checkpoints(run)
    checkpoints.save(1, {"state": {"params": params, "opt_state": {"masks": masks}}})
    checkpoints.close()
    return run, params, masks


@pytest.mark.parametrize("to", ["safetensors", "sparse"])
def test_weights_and_masks(to, folder, capsys):
    run, params, masks = folder
    main([str(run), f"--to={to}"])
    name = "weights.safetensors" if to == "safetensors" else "sparse.safetensors"
    size, dense = (run / name).stat().st_size, 4 * (64 * 5 + 5 * 10 + 15)
    assert capsys.readouterr().out == (
        f"{run / name}: {size:,} bytes; all weights take {dense:,} bytes.\n"
    )
    loaded = load_safetensors(run / name)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables["params"], params)
    for layer, mask in masks.items():
        np.testing.assert_array_equal(loaded.masks[layer]["kernel"], mask["kernel"])


def test_a_program_takes_the_images_as_they_are(folder, tmp_path):
    run, params, _ = folder
    path = export_run(run, "jax", tmp_path / "digits")
    images = np.random.default_rng(1).integers(0, 256, (20, 8, 8, 1), np.uint8)
    expected = create_model("mlp", 10, hidden=(5,)).apply(
        {"params": params}, normalize(images, MEAN, STD), train=False
    )
    np.testing.assert_allclose(load_inference(path)(images), expected, rtol=1e-5, atol=1e-5)


def test_mistakes_are_one_sentence(folder, tmp_path, monkeypatch):
    run, *_ = folder
    with pytest.raises(SystemExit, match=r"error: .*holds no finished run"):
        main([str(tmp_path / "elsewhere")])
    with pytest.raises(SystemExit, match=r"error: .*cannot be used"):
        main([str(run), f"--output={tmp_path / 'none' / 'a'}"])
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(SystemExit, match=r"error: safetensors .*pip install 'cka_sr_jax\[expo"):
        main([str(run)])
