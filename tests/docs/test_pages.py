"""The pages' blocks run and print what they show; commands, fields, methods and links exist."""

import argparse
import importlib
import re
import runpy

import jax
import numpy as np
import pytest
from absl import flags
from flax import nnx
from ml_collections import config_flags

from cka_sr_jax.analysis.rows import RESULTS
from cka_sr_jax.sparsity import get_masks, leaf_paths
from cka_sr_jax.sweeps import grid_points
from cka_sr_jax.training import default_config, validate
from cka_sr_jax.training.config import flatten
from cka_sr_jax.training.methods import METHOD_NAMES
from tests.docs.pages import (
    PAGES,
    ROOT,
    anchors,
    launch_commands,
    links,
    module_commands,
    python_blocks,
)
from tests.report.fake_wandb import install

# The pages whose blocks run here; other tests run the others' blocks.
OURS = [ROOT / "README.md"]
OURS += [
    ROOT / "docs" / f"{name}.md"
    for name in ("own_models", "methods", "running", "sweeps", "export", "companions")
]
BLOCKS = [
    pytest.param(page.name, code, output, id=f"{page.stem}{i}")
    for page in OURS
    for i, (code, output) in enumerate(python_blocks(page))
]
FIELDS = flatten(default_config())


@pytest.mark.parametrize(("page", "code", "output"), BLOCKS)
def test_a_block_runs_and_prints_what_the_page_shows(
    page, code, output, tmp_path, monkeypatch, capsys
):
    if re.search(r"nnx\.(capture|Optimizer|restore_int_paths)", code) and not hasattr(
        nnx, "capture"
    ):
        pytest.skip(
            "flax 0.11 lacks functions of nnx, and its nnx.Optimizer takes no masked states"
        )
    monkeypatch.chdir(tmp_path)
    scope = {"__name__": "block"}
    with jax.numpy_dtype_promotion("standard"):  # as users have it, and Optax's Adam needs it
        exec(compile(code, page, "exec"), scope)
    printed = capsys.readouterr().out
    assert output is None or printed == output
    if "opt_state" in scope and "params" in scope:
        assert_zeros_stay_zeros(scope)


def assert_zeros_stay_zeros(scope):
    """No weight of the block's parameters outside its masks differs from 0."""
    masks = get_masks(scope["opt_state"])
    masks = dict(leaf_paths(masks["weights"] if "trained" in scope else masks))
    values = dict(leaf_paths(scope["params"]))
    assert masks
    for path, mask in masks.items():
        assert not np.asarray(values[path])[~np.asarray(mask)].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(scope["params"]))


def test_blocks_are_short():
    """At most 30 lines, without imports and empty ones."""
    for block in BLOCKS:
        _, code, _ = block.values
        lines = [line for line in code.splitlines() if line.strip() and "import" not in line]
        assert len(lines) <= 30, block.id


def all_commands(find):
    """A parameter for every command that `find` finds in all pages."""
    found = {(page.stem, " ".join(words)): words for page in PAGES for words in find(page)}
    return [pytest.param(words, id=" ".join(key)) for key, words in found.items()]


@pytest.mark.parametrize("words", all_commands(launch_commands))
def test_a_launch_command_gives_configs_that_can_work(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    install(monkeypatch)  # commands that show a run in W&B install it first
    file = next(word for word in words if word.startswith("--config=")).partition("=")[2]
    config = runpy.run_path(file)["get_config"]()
    values, argv = flags.FlagValues(), ["launch.py", *words]
    argv.remove(f"--config={file}")
    for name in ("workdir", "coordinator"):
        flags.DEFINE_string(name, None, "", flag_values=values)
    for name in ("grid", "retry"):
        flags.DEFINE_bool(name, False, "", flag_values=values)
    for name in ("grid_index", "jobs", "replicas", "num_processes", "process_id"):
        flags.DEFINE_integer(name, None, "", flag_values=values)
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    assert values(argv) == ["launch.py"]
    is_grid = values.grid or values.grid_index is not None
    assert is_grid == bool(config.grid or config.seeds)
    for point in grid_points(config).values() if is_grid else [config]:
        validate(point, devices=1)


class Parsed(BaseException):
    """A command line was parsed; the command goes no further."""


@pytest.mark.parametrize("words", all_commands(module_commands))
def test_a_module_command_has_these_options(words, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser, arguments):
        raise Parsed(parse(parser, arguments))

    module = importlib.import_module(words[0])
    if not words[1:]:
        return
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    with pytest.raises(Parsed) as parsed:
        module.main(words[1:])
    options = vars(parsed.value.args[0])
    fields = [options.get(name) for name in ("rows", "columns", "field")]
    for field in ",".join(filter(None, fields)).split(",") if any(fields) else []:
        assert field in FIELDS or field == "devices" or field.startswith("model.options.")
    if isinstance(options.get("value"), str) and "measure" not in options:
        assert options["value"] in RESULTS
    assert options.get("measure", RESULTS[0]) in RESULTS


@pytest.mark.parametrize("page", OURS, ids=lambda page: page.stem)
def test_every_field_that_a_page_names_exists(page):
    text = page.read_text()
    groups = "|".join({field.partition(".")[0] for field in FIELDS if "." in field})
    names = re.findall(r"--config\.([\w.]*\w)", text)
    names += re.findall(rf"`((?!model\.apply)(?:{groups})\.[a-z_.]*[a-z_])(?:=[^`]*)?`", text)
    for name in names:
        field = name.removeprefix("grid.")
        assert field in FIELDS or field.startswith("model.options.") or name == "FIELD", name


def test_methods_has_a_section_for_every_method():
    text = (ROOT / "docs" / "methods.md").read_text()
    headings = set(re.findall(r"^### .*: `(\w+)`$", text, re.M))
    assert headings == set(METHOD_NAMES) - {"dense"}
    assert "`dense` keeps all weights" in text


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.parent.name not in ("results", "reference")],
    ids=lambda page: page.stem,
)
def test_links_lead_somewhere(page):
    for target, anchor in links(page):
        assert target.exists(), target.relative_to(ROOT)
        assert not anchor or anchor in anchors(target), anchor


def test_the_index_has_every_page():
    index = ROOT / "docs" / "index.md"
    listed = {target for target, _ in links(index)}
    pages = {page for page in PAGES if page.parent.name in ("docs", "tutorials", "explanations")}
    assert pages - {index} <= listed
