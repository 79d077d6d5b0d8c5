"""The cells of the tutorials and explanations run in order, and show what the text says."""

import os
import re
import subprocess
import sys

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx

from tests.docs.pages import ROOT, cells
from tests.notebooks.run_cells import run_cell

PAGES = sorted(page for folder in ("tutorials", "explanations") for page in
               (ROOT / "docs" / folder).glob("*.md"))  # fmt: skip
FRONT_MATTER = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n\n# "


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a page's cells in one namespace; gives the namespace and what they print.

    Under JAX's own settings, as a reader has them. A cell's last value is shown as a notebook
    would.
    """

    def run_page(name):
        monkeypatch.chdir(tmp_path)
        plt.switch_backend("agg")
        scope = {"__name__": "__main__"}
        try:
            with jax.numpy_rank_promotion("allow"):
                for code in cells(ROOT / "docs" / f"{name}.md"):
                    run_cell(code, scope)
            scope["figures"] = len(plt.get_fignums())
        finally:
            plt.close("all")
        return scope, capsys.readouterr().out

    return run_page


def numbers(pattern, printed):
    """The groups of every match, as numbers."""
    found = re.findall(pattern, printed, re.M)
    return [tuple(map(float, row if isinstance(row, tuple) else (row,))) for row in found]


def test_plug_in(run):
    _, printed = run("tutorials/plug_in")
    (plain, plain_cka), (penalized, cka) = numbers(r": (\d+) of 360 .* (\d\.\d+)$", printed)
    assert cka < plain_cka - 0.1
    assert min(plain, penalized) > 300
    seeds = numbers(r"^seed \d: (\d+) right without, (\d+) with", printed)
    assert len(seeds) == 5
    assert max(abs(one - other) for one, other in seeds) < 20  # "a few images"
    assert "shown: Summary_repr_html_" in printed
    assert "shown: Figure_repr_png_" in printed


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(nnx, "capture"), reason="flax 0.11 has no nnx.capture")
def test_transformer(run):
    scope, printed = run("tutorials/transformer")
    ((first, last),) = numbers(r"^loss (\S+) -> (\S+)$", printed)
    assert last < 0.2 * first
    assert numbers(r"^(\d+\.\d)% of new sequences right", printed) > [(85.0,)]
    assert scope["figures"] == 1


@pytest.mark.slow
def test_write_a_rule(run):
    scope, printed = run("tutorials/write_a_rule")
    assert (
        len(re.findall(r"^right of 360 test images, by seed: \[\d+, \d+, \d+\]$", printed, re.M))
        == 3
    )
    assert printed.count("counts stay True, pruned weights are 0 True") == 3
    assert all(moved > 0 for (moved,) in numbers(r"(\d+) moved$", printed))
    rigl, scarce = (scope["pixels"](scope["found"][name][1]) for name in ("rigl", "scarce inputs"))
    assert scarce.max() < rigl.max()
    assert scope["figures"] == 2


def test_layer_sparsity(run):
    scope, printed = run("tutorials/layer_sparsity")
    layers = numbers(r"^strength (\d+), \w+ *: (\d) layers", printed)
    assert layers[:3] == [(0, 5), (0, 5), (20, 5)]
    assert layers[3][1] < 5
    assert all(float(norms[-1]) == 0 for norms in scope["found"][20.0][1].values())
    assert all(error < 1e-4 for (error,) in numbers(r"difference (\S+) of", printed))
    assert scope["figures"] == 1


def alone(name, tmp_path):
    """What a page prints that runs in a process of its own, with one device."""
    code = (
        "import sys; from pathlib import Path; from tests.docs.pages import cells; "
        "from tests.notebooks.run_cells import run_cell; scope = {'__name__': '__main__'}; "
        "[run_cell(code, scope) for code in cells(Path(sys.argv[1]))]"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    environment.pop("XLA_FLAGS")
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT / "docs" / f"{name}.md"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_paper_table(tmp_path):
    printed = alone("tutorials/paper_table", tmp_path)
    assert printed.count(": finished: test accuracy 0.9") == 6
    (cka,), (lower,) = numbers(r"^\| 0(?:\.\d+)? \| (\d\.\d+) ± \S+ \(3\) \|$", printed)
    assert lower < cka
    assert "chosen beta (pairs)" in printed
    assert "shown: Figure_repr_png_" in printed
    assert "39 runs of resnet20 on cifar10\n160 epochs each" in printed


@pytest.mark.slow
def test_on_a_pod(tmp_path):
    printed = alone("tutorials/on_a_pod", tmp_path)
    assert "process 1 says:\n(nothing)" in printed
    ((difference,),) = numbers(r"largest difference of two weights: (\S+)$", printed)
    assert difference < 1e-4
    assert "the same weights pruned: True" in printed
    accuracies = numbers(r"^\w+: test accuracy (\S+), density 0\.200$", printed)
    assert len(accuracies) == 2


@pytest.mark.slow
def test_why_debiased(run):
    scope, printed = run("explanations/why_debiased")
    ((numpy, library),) = numbers(r"^in NumPy (\S+), by the library (\S+)$", printed)
    assert numpy == pytest.approx(library, abs=2e-4)
    biased, debiased = (scope["found"][kind][:, 0] for kind in (False, True))
    assert (np.diff(biased) < 0).all()  # to 1, as samples get fewer
    assert biased[0] > 0.95
    assert (abs(debiased[1:]) < 0.2).all()
    for biased, debiased, true in numbers(r"biased (\S+), debiased (\S+), true (\S+)$", printed):
        assert biased > 0.9
        assert debiased == pytest.approx(true, abs=0.15)
    assert scope["figures"] == 1


@pytest.mark.slow
def test_rules_in_pictures(run):
    scope, _ = run("explanations/rules_in_pictures")
    kept = {name: masks.sum(axis=(1, 2)) for name, (masks, _) in scope["found"].items()}
    for name in ("rst", "set", "rigl"):
        assert np.ptp(kept[name]) == 0
    for name in ("gmp", "granet", "channels"):
        assert (np.diff(kept[name]) <= 0).all()
        assert kept[name][-1] == 60
    masks = {name: masks for name, (masks, _) in scope["found"].items()}
    assert (masks["rst"] == masks["rst"][0]).all()
    assert not (masks["gmp"][1:] & ~masks["gmp"][:-1]).any()  # nothing is ever green
    assert (masks["granet"][1:] & ~masks["granet"][:-1]).any()
    band = np.asarray(scope["band"])
    found = {name: int(mask[-1][band].sum()) for name, mask in masks.items()}
    assert found["rigl"] == found["gmp"] == found["granet"] == band.sum()
    assert found["rst"] < found["set"] < found["rigl"]
    assert scope["figures"] == 2


def test_reading_results(run):
    scope, printed = run("explanations/reading_results")
    ((_, paired), (_, unpaired)) = numbers(r"paired: *(\S+) ± (\d+\.\d+)", printed)
    assert paired < 0.5 * unpaired
    ((wrong,),) = numbers(r"^(\d+) of 100 intervals exclude 0", printed)
    assert 1 <= wrong <= 10
    factors = dict(numbers(r"^ *(\d+) pairs: ± (\S+) deviations", printed))
    assert factors[3] > 2 * factors[30]
    assert scope["figures"] == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short_and_tested(page):
    """At most ten cells, each of which a reader can take in, and no command of a notebook."""
    text = page.read_text()
    assert text.startswith(FRONT_MATTER)
    assert f'/{page.stem}"' in (ROOT / "tests" / "docs" / "test_tutorials.py").read_text()
    found = cells(page)
    assert 4 <= len(found) <= 10
    assert text.count("{code-cell}") == len(found)
    for code in found:
        assert not re.search(r"^\s*[%!]", code, re.M)
        lines = [line for line in code.splitlines() if line.strip() and "import" not in line]
        assert len(lines) <= 36, lines[0]
        assert max(map(len, code.splitlines())) <= 100
