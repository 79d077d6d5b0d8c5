"""Files that others made run no code, and names that others chose stay in the folder they are for.

That reports escape what they show is in report/test_html.py and accounting/test_summary.py.
"""

import ast
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from cka_sr_jax.data.tfds_cache import ARRAYS, open_cached
from cka_sr_jax.data.tfds_folder import find_prepared
from cka_sr_jax.layer_sparsity import load_mlp
from cka_sr_jax.sweeps.points import grid_points
from cka_sr_jax.training import default_config

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "launch.py", *sorted((ROOT / "cka_sr_jax").rglob("*.py"))]
# Modules and functions that run what they read; a config file is run because the user names it.
UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
CALLS = {"eval", "exec", "compile", "system", "popen", "__import__"}


def code_that_runs_what_it_reads(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [module or ""] if module else [alias.name for alias in node.names]
            yield from (name for name in names if name.split(".")[0] in UNSAFE)
        if isinstance(node, ast.Call):
            function = node.func
            builtin = isinstance(function, ast.Name) and function.id in CALLS
            of_os = isinstance(function, ast.Attribute) and (
                function.attr in CALLS and ast.unparse(function.value) in ("os", "builtins")
            )
            if builtin or of_os:
                yield ast.unparse(node)
            for keyword in node.keywords:
                if (
                    keyword.arg in ("allow_pickle", "shell")
                    and ast.unparse(keyword.value) != "False"
                ):
                    yield ast.unparse(node)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_module_runs_what_it_reads(file):
    assert list(code_that_runs_what_it_reads(file)) == []


@pytest.mark.parametrize(
    "line",
    ["import pickle", "from joblib import load", "eval(text)", "os.system(text)",
     "np.load(path, allow_pickle=True)", "subprocess.run(text, shell=True)"],
)  # fmt: skip
def test_what_would_run_it_is_found(line, tmp_path):
    (tmp_path / "a.py").write_text(line)
    assert list(code_that_runs_what_it_reads(tmp_path / "a.py")) != []


class Bomb:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


def npy_of_a_bomb():
    content = io.BytesIO()
    np.save(content, np.array([Bomb()], object), allow_pickle=True)
    return content.getvalue()


def test_an_archive_with_a_pickle_is_refused(tmp_path):
    path = tmp_path / "mlp.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("head.kernel.npy", npy_of_a_bomb())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_mlp(path)


def test_a_cache_with_a_pickle_is_none(tmp_path):
    for array in ARRAYS:
        (tmp_path / f"{array}.npy").write_bytes(npy_of_a_bomb())
    digest = hashlib.sha256((tmp_path / "train_images.npy").read_bytes()).hexdigest()
    meta = {"num_classes": 10, "digests": dict.fromkeys(ARRAYS, digest)}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    assert open_cached(tmp_path) is None


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc", "a/b/c", "~", "..", "x\0y"])
def test_the_name_of_a_set_stays_in_the_folder_of_sets(name, tmp_path):
    (tmp_path / "x" / "1.0.0").mkdir(parents=True)
    (tmp_path / "x" / "1.0.0" / "dataset_info.json").write_text("{}")
    (tmp_path / "sets").mkdir()
    with pytest.raises(ValueError, match=r"data\.name is"):
        find_prepared(name, tmp_path / "sets")


@pytest.mark.parametrize("value", ["../../x", "/etc/passwd", "..", "a\\..\\b", "*"])
def test_the_points_of_a_grid_stay_in_its_folder(value, tmp_path):
    config = default_config()
    config.grid.sparsity = ConfigDict({"exclude": (("head/kernel",), (value,))})
    for name in grid_points(config):
        assert (tmp_path / name).resolve().parent == tmp_path
        assert not set(name) & set("/\\*")
