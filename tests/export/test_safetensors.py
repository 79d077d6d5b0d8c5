"""Safetensors files: what is written comes back, bit for bit, and what is damaged is named."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx
from safetensors import safe_open

from cka_sr_jax.export import load_safetensors, save_safetensors
from cka_sr_jax.sparsity import get_masks, make_rule, sparse_init, sparsify
from tests.export.models import assert_same, logits, sparse_model

KERNEL = np.array([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]], np.float32)
VARIABLES = {"params": {"kernel": KERNEL, "bias": np.ones(3, np.float32)}}
MASKS = {"kernel": KERNEL != 0, "bias": optax.MaskedNode()}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("density", [0.02, 0.1, 1.0])
def test_variables_and_masks_come_back(density, sparse, tmp_path):
    _, variables, masks, _ = sparse_model(density=density)
    save_safetensors(tmp_path / "a", variables, masks, sparse)
    loaded = load_safetensors(tmp_path / "a")
    assert_same(loaded.variables, variables)
    assert_same(loaded.masks, masks)


def test_a_loaded_model_gives_the_same_outputs(tmp_path):
    model, variables, masks, images = sparse_model("mlp", hidden=(9,))
    expected = logits(model, variables, images)
    for sparse in (False, True):
        save_safetensors(tmp_path / "a", variables, masks, sparse)
        loaded = load_safetensors(tmp_path / "a").variables
        np.testing.assert_array_equal(logits(model, loaded, images), expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
@pytest.mark.parametrize("sparse", [False, True])
def test_types_stay(dtype, sparse, tmp_path):
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), VARIABLES)
    variables["counts"] = {"steps": np.array(7, np.int32), "none": np.zeros((0, 2), np.float32)}
    save_safetensors(tmp_path / "a", variables, MASKS, sparse)
    loaded = load_safetensors(tmp_path / "a").variables
    for one, two in zip(jax.tree.leaves(loaded), jax.tree.leaves(variables), strict=True):
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        np.testing.assert_array_equal(one, two)


def test_without_masks_there_are_none(tmp_path):
    save_safetensors(tmp_path / "a", VARIABLES)
    loaded = load_safetensors(tmp_path / "a")
    assert loaded.masks is None
    assert_same(loaded.variables, VARIABLES)


def test_a_dense_file_is_plain_to_other_readers(tmp_path):
    save_safetensors(tmp_path / "a", VARIABLES, MASKS)
    tensors = safetensors.numpy.load_file(tmp_path / "a")
    assert set(tensors) == {"params/kernel", "params/bias", "masks/kernel"}
    np.testing.assert_array_equal(tensors["params/kernel"], KERNEL)
    np.testing.assert_array_equal(tensors["masks/kernel"], KERNEL != 0)


def test_a_sparse_file_has_the_shorter_form_of_the_places(tmp_path):
    """By the format's own description: bit i % 8 of byte i // 8, or numbers in the flat array."""
    rng = np.random.default_rng(0)
    few, many = np.zeros((40, 40), np.float32), np.zeros((5, 5), np.float32)
    few.ravel()[[3, 1599]] = 1, 2
    many.ravel()[rng.permutation(25)[:9]] = np.arange(1, 10)
    masks = {"few": few != 0, "many": many != 0}
    save_safetensors(tmp_path / "a", {"params": {"few": few, "many": many}}, masks, sparse=True)
    with safe_open(tmp_path / "a", framework="np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["cka_sr_jax"])
    assert header["shapes"] == {"few": [40, 40], "many": [5, 5]}
    assert set(tensors) == {"values/few", "indices/few", "values/many", "bitmap/many"}
    assert tensors["indices/few"].tolist() == [3, 1599]
    assert tensors["values/few"].tolist() == [1.0, 2.0]
    bits = [tensors["bitmap/many"][i // 8] >> (i % 8) & 1 for i in range(25)]
    assert bits == (many.ravel() != 0).tolist()
    np.testing.assert_array_equal(tensors["values/many"], many[many != 0])


def test_a_kept_weight_that_is_0_stays_kept(tmp_path):
    mask = np.array([[True, True, False], [True, False, False]])
    save_safetensors(tmp_path / "a", VARIABLES, {**MASKS, "kernel": mask}, sparse=True)
    np.testing.assert_array_equal(load_safetensors(tmp_path / "a").masks["kernel"], mask)


def test_states_of_nnx(tmp_path):
    model = nnx.Linear(6, 4, rngs=nnx.Rngs(0))
    tx = sparsify(optax.sgd(0.1), make_rule("rst", density=0.25))
    params, state = sparse_init(tx, nnx.state(model, nnx.Param))
    save_safetensors(tmp_path / "a", {"params": params}, get_masks(state), sparse=True)
    kernel = load_safetensors(tmp_path / "a").variables["params"]["kernel"]
    np.testing.assert_array_equal(kernel, params["kernel"][...])
    assert np.count_nonzero(kernel) == 6


@pytest.mark.parametrize(
    ("variables", "masks", "sparse", "message"),
    [
        ({"kernel": KERNEL}, None, False, "no collection 'params'"),
        (VARIABLES, None, True, "sparse=True .*pass masks"),
        (VARIABLES, {"kernel": KERNEL != 0}, False, "another structure"),
        (VARIABLES, {**MASKS, "kernel": KERNEL.T != 0}, True, r"mask of kernel has shape \(3, 2\)"),
        (VARIABLES, {**MASKS, "kernel": KERNEL > 2}, True, "1 weights of kernel .*apply_masks"),
        (VARIABLES | {"masks": {}}, MASKS, False, "a collection is called 'masks'"),
        ({"params": {"a/b": KERNEL}}, None, False, "the key 'a/b' has a slash"),
    ],
)
def test_what_cannot_be_stored_is_refused(variables, masks, sparse, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_safetensors(tmp_path / "a", variables, masks, sparse)
    assert not (tmp_path / "a").exists()


def saved(path, sparse=True):
    save_safetensors(path, VARIABLES, MASKS, sparse)
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"junk" * 30,
        lambda content: content[:-5],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),  # a bit of a weight
        lambda content: content.replace(b"[2,3]", b"[3,2]").replace(b"params", b"qarams"),
        lambda content: content.replace(b'\\"version\\"', b'\\"versiom\\"'),
        lambda content: content.replace(b"[2, 3]", b"[3, 2]"),  # in the header alone
    ],
    ids=["empty", "junk", "short", "bit", "name", "header", "shape"],
)
def test_a_damaged_file_is_named(damage, tmp_path):
    content = saved(tmp_path / "good")
    assert damage(content) != content
    (tmp_path / "bad").write_bytes(damage(content))
    with pytest.raises(ValueError, match=r"bad is damaged or no safetensors file .*save_safetens"):
        load_safetensors(tmp_path / "bad")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bitmap/kernel": np.array([1, 2], np.uint8)}, r"the places of kernel do not fit .*2, 3"),
        ({"bitmap/kernel": np.array([1], np.uint8)}, "the values of kernel are not as many"),
        ({"bitmap/kernel": None}, "the places of kernel"),
        ({"values/kernel": None}, "the values of kernel"),
    ],
)
def test_parts_that_do_not_fit_are_named(change, message, tmp_path, monkeypatch):
    """With a digest that fits: somebody else's writer made the mistake."""
    monkeypatch.setattr("cka_sr_jax.export.safetensors._digest", lambda *_: "")
    saved(tmp_path / "a")
    with safe_open(tmp_path / "a", framework="np") as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load_file(tmp_path / "a") | change
    tensors = {name: array for name, array in tensors.items() if array is not None}
    safetensors.numpy.save_file(tensors, tmp_path / "b", metadata)
    with pytest.raises(ValueError, match=f"b is damaged .*{message}"):
        load_safetensors(tmp_path / "b")


def test_files_of_others_and_of_later_versions_are_told_apart(tmp_path):
    safetensors.numpy.save_file({"conv1.weight": KERNEL}, tmp_path / "torch")
    with pytest.raises(ValueError, match=r"torch was not written by .*numpy\.load_file"):
        load_safetensors(tmp_path / "torch")
    later = saved(tmp_path / "a").replace(b'\\"version\\": 1', b'\\"version\\": 2')
    (tmp_path / "later").write_bytes(later)
    with pytest.raises(ValueError, match=r"later has version 2 .*install a newer"):
        load_safetensors(tmp_path / "later")
    with pytest.raises(FileNotFoundError, match="none"):
        load_safetensors(tmp_path / "none")
    with pytest.raises(OSError, match="nowhere"):
        save_safetensors(tmp_path / "nowhere" / "a", VARIABLES)


def test_a_file_that_is_there_is_replaced(tmp_path):
    (tmp_path / "a").write_bytes(b"old" * 1000)
    saved(tmp_path / "a")
    assert_same(load_safetensors(tmp_path / "a").variables, VARIABLES)


def test_without_safetensors_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cka_sr_jax\[export\]'"):
        save_safetensors(tmp_path / "a", VARIABLES)
    with pytest.raises(ModuleNotFoundError, match="safetensors is not installed"):
        load_safetensors(tmp_path / "a")
