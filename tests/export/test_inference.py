"""Programs of inference: any batch size, without the model's code."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from cka_sr_jax.export import export_inference, load_inference
from tests.export.models import logits, sparse_model


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        ("mlp", (5, 4, 1), {"hidden": (7,)}),
        ("lenet5", (12, 12, 1), {}),
        ("resnet8", (6, 6, 3), {"width": 2}),
        ("vit-micro", (6, 6, 1), {"patch": 2, "keep_rates": (0.5,), "keep_by": "score-cka"}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("resnet18", (40, 40, 3), {"width": 2, "stem": "imagenet"}),
                ("vgg16", (16, 16, 3), {"width": 2}),
                ("wrn10-2", (8, 8, 3), {"width": 2}),
            )
        ),
    ],
)
def test_every_model_gives_its_own_outputs_at_any_batch_size(name, image, options, tmp_path):
    model, variables, _, images = sparse_model(name, 0.5, image, **options)
    export_inference(lambda v, x: model.apply(v, x, train=False), variables, images, tmp_path / "a")
    run = load_inference(tmp_path / "a")
    expected = logits(model, variables, images)
    for size in (1, 4):
        found = np.asarray(run(images[:size]))
        # Attention sums in another order where the batch has another size.
        rtol = 1e-3 if name.startswith("vit") else 1e-5
        np.testing.assert_allclose(found, expected[:size], rtol=rtol)


def test_a_program_is_shown_in_a_line(tmp_path):
    model, variables, _, images = sparse_model("mlp", 0.5, (5, 4, 1), hidden=(7,))
    export_inference(lambda v, x: model.apply(v, x, train=False), variables, images, tmp_path / "a")
    shown = "Inference(float32[batch,5,4,1] on cpu, cuda, tpu)"
    assert repr(load_inference(tmp_path / "a")) == shown


def linear(variables, x):
    return x.astype(jnp.float32) @ variables["w"]


def test_it_runs_in_a_process_that_has_jax_alone(tmp_path):
    path = tmp_path / "a"
    export_inference(linear, {"w": jnp.full((2, 1), 0.5)}, np.ones((1, 2), np.uint8), path)
    script = f"""
import sys
sys.modules["cka_sr_jax"] = sys.modules["flax"] = None
import jax, jax.export, numpy as np
program = jax.export.deserialize(bytearray(open({str(path)!r}, "rb").read()))
print(program.platforms, program.call(np.array([[2, 4], [6, 8], [1, 1]], np.uint8)).tolist())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "('cpu', 'cuda', 'tpu') [[3.0], [7.0], [1.0]]\n", done.stderr


@pytest.mark.usefixtures("enable_x64")
def test_weights_and_inputs_are_float32(tmp_path):
    for dtype in (jnp.bfloat16, jnp.float64):
        variables = {"w": jnp.ones((2, 3), dtype)}
        export_inference(lambda v, x: x @ v["w"], variables, np.ones((1, 2)), tmp_path / "a")
        assert load_inference(tmp_path / "a")(np.ones((4, 2), np.float32)).dtype == np.float32


def test_other_inputs_are_refused_at_the_call(tmp_path):
    export_inference(linear, {"w": jnp.ones((2, 3))}, jnp.ones((1, 2)), tmp_path / "a", ["cpu"])
    run = load_inference(tmp_path / "a")
    with pytest.raises(ValueError, match=r"expected \(batch, 2\) and called with \(1, 3\)"):
        run(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="expected float32 and called with int32"):
        run(jnp.ones((1, 2), jnp.int32))


def test_what_cannot_be_exported_is_refused(tmp_path):
    def count(variables, x):
        return x.reshape(len(x), -1)

    for apply, example, platforms, message in (
        (linear, jnp.ones(()), ["cpu"], "the example is a single number"),
        (linear, jnp.ones((1, 2)), ["cpu", "gpu"], "has 'gpu': expected some of cpu, cuda, rocm"),
        (count, jnp.ones((1, 2)), ["cpu"], r"write x\.shape\[0\] in place of len\(x\)"),
    ):
        with pytest.raises(ValueError, match=message):
            export_inference(apply, {"w": jnp.ones((2, 3))}, example, tmp_path / "a", platforms)
    with pytest.raises(TypeError, match="dot_general"):  # jax's own words for the rest
        export_inference(linear, {"w": jnp.ones((9, 3))}, jnp.ones((1, 2)), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_damaged_file_and_one_of_another_kind_are_named(tmp_path):
    export_inference(linear, {"w": jnp.ones((2, 3))}, jnp.ones((1, 2)), tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for bad in (b"", b"junk" * 50, content[:-1], changed):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(ValueError, match="bad is damaged or was not written by export_inferen"):
            load_inference(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="none"):
        load_inference(tmp_path / "none")


def test_without_flatbuffers_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ModuleNotFoundError, match=r"flatbuffers .*pip install 'cka_sr_jax\[expor"):
        export_inference(linear, {"w": jnp.ones((2, 3))}, jnp.ones((1, 2)), tmp_path / "a")
    with pytest.raises(ModuleNotFoundError, match="flatbuffers is not installed"):
        load_inference(tmp_path / "a")
