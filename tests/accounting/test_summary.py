"""The table of what is pruned, as what, and at which density."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from cka_sr_jax.accounting import summary
from cka_sr_jax.sparsity import rst, sparse_init, sparsify

PARAMS = {
    "blocks": {"kernel": jnp.ones((3, 4, 8)), "bias": jnp.ones((3, 8))},
    "embed": {"embedding": jnp.ones((9, 4))},
    "head": {"kernel": jnp.ones((8, 5)), "bias": jnp.ones(5)},
    "<b>": {"kernel": jnp.ones((2, 2))},
}
STACKED = {"blocks": 1}


def test_before_training_it_says_what_would_be_pruned():
    shapes = jax.eval_shape(lambda: PARAMS)
    lines = str(summary(shapes, stacked=STACKED, exclude="head")).splitlines()
    assert lines[0].split() == ["parameter", "shape", "pruned", "as", "weights", "kept", "density"]
    by_name = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert by_name["blocks/kernel"] == "3x4x8 3 layers: matrix 4 x 8 96"
    assert by_name["embed/embedding"] == "9x4 not pruned 36 36 1"
    assert by_name["head/kernel"] == "8x5 not pruned 40 40 1"


def test_with_masks_it_counts_them():
    rule = rst(0.25, {"blocks/kernel/0": 0.5, "*": 0.25}, stacked=STACKED)
    params, state = sparse_init(sparsify(optax.sgd(0.1), rule), PARAMS)
    table = summary(params, state, stacked=STACKED)
    rows = {row.path: row for row in table.rows}
    assert rows["blocks/kernel"].kept.tolist() == [16, 8, 8]
    assert rows["head/kernel"].kept == 10
    assert rows["blocks/bias"].layer is None
    text = str(table)
    assert "0.2500 to 0.5000" in text
    pruned = next(line for line in text.splitlines() if line.startswith("pruned together"))
    assert pruned.split()[2:] == ["140", "43", f"{43 / 140:.4f}"]


def test_in_a_notebook_it_is_html_with_names_escaped():
    page = summary(PARAMS, stacked=STACKED)._repr_html_()
    assert page.count("<tr>") == 1 + 6 + 3 - 1
    assert "&lt;b&gt;/kernel" in page
    assert "<b>" not in page


def test_the_state_of_an_nnx_optimizer():
    """It keeps the masks in variables of its own kind; without Flax 0.12's they are made here."""
    model = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    tx, params = sparsify(optax.sgd(0.1), rst(0.25)), nnx.state(model, nnx.Param)
    state = tx.init(params)
    if hasattr(nnx, "capture"):
        state = nnx.Optimizer(model, tx, wrt=nnx.Param).opt_state
    rows = {row.path: row for row in summary(params, state).rows}
    assert rows["kernel"].kept == 8
    assert rows["bias"].layer is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"head": {"kernel": jnp.ones((8, 4))}},
            r"\(8, 5\) for head/kernel, and it has shape \(8, 4",
        ),
        ({"tail": {"kernel": jnp.ones((8, 5))}}, r"\(8, 5\) for head/kernel, and there is none"),
    ],
)
def test_the_state_of_other_parameters_is_refused(params, message):
    state = sparsify(optax.sgd(0.1), rst(0.5)).init({"head": {"kernel": jnp.ones((8, 5))}})
    with pytest.raises(ValueError, match=message):
        summary(params, state)


def test_a_stack_that_is_not_declared_is_refused():
    with pytest.raises(ValueError, match="looks like 3 layers"):
        summary(PARAMS)
