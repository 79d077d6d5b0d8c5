"""Checkpoints: what is refused."""

import json
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest
from rich.console import Console

from cka_sr_jax.models import create_model
from cka_sr_jax.training import (
    Checkpoints,
    ConfigError,
    load_variables,
    loop,
)
from cka_sr_jax.training.evaluation import make_evaluator
from cka_sr_jax.training.loop import prepare
from cka_sr_jax.workflows import run
from tests.speeds import fast_among
from tests.training.runs import arrays, assert_same_run, small_config


def test_checkpoints_refuse_other_shapes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": np.zeros((2, 3), np.float32), "mask": np.ones(3, bool)})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="does not fit this run: 'mask' is"):
        checkpoints.restore({"w": np.zeros((2, 3), np.float32), "mask": np.ones(4, bool)})
    with pytest.raises(ValueError, match="only the checkpoint has 'mask'"):
        checkpoints.restore({"w": np.zeros((2, 3), np.float32)})
    checkpoints.close()


def test_load_variables_gives_the_tested_weights(finished):
    variables = load_variables(finished[0])
    stored = arrays(finished[0])
    head = variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(head, stored["state.params.head.kernel"])
    logits = create_model("mlp", 10, hidden=(32, 32, 32)).apply(
        variables, np.zeros((2, 8, 8, 1), np.float32), train=False
    )
    assert logits.shape == (2, 10)
    with pytest.raises(ValueError, match="holds no run"):
        load_variables(finished[0] / "report")


@pytest.mark.parametrize(("stored", "wanted"), [("dense", "rst"), ("rst", "dense")])
def test_a_checkpoint_of_another_config_is_refused(stored, wanted, tmp_path):
    config = small_config(sparsity__rule=stored, train__steps=1, penalty__beta=0.0)
    plan = prepare(config)
    loop.train(plan, tmp_path, make_evaluator(plan), Console(quiet=True))
    config.sparsity.rule = wanted
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    message = f"of another run: sparsity.rule is '{stored}' there and '{wanted}' here"
    with pytest.raises(ConfigError, match=message):
        run(config, tmp_path)


def test_checkpoints_of_another_seed_are_refused(tmp_path):
    """Though they fit: copied into this run's folder, they would be taken for its own."""
    for seed in (0, 1):
        run(small_config(seed=seed, train__steps=2, penalty__beta=0.0), tmp_path / str(seed))
    mine, others = (tmp_path / name / "checkpoints" for name in "01")
    (tmp_path / "0" / "result.json").unlink()
    shutil.rmtree(mine)
    shutil.copytree(others, mine)
    with pytest.raises(ConfigError, match="of another run: seed is 1 there and 0 here"):
        run(small_config(seed=0, train__steps=2, penalty__beta=0.0), tmp_path / "0")


@pytest.mark.parametrize(
    ("step", "tree", "message"),
    [
        (5, {"w": np.ones(2)}, "step=5 is before 7, the newest"),
        (-1, {"w": np.ones(2)}, "step=-1 is negative"),
        (8, {"a.b": np.ones(1), "a": {"b": np.ones(2)}}, "two leaves have the path 'a.b'"),
        (8, {"name": "x"}, r"'name' has shape \(\) and type <U1"),
        (8, {"w": np.ones((0, 3))}, r"'w' has shape \(0, 3\)"),
    ],
)
def test_what_cannot_be_stored_is_refused(step, tree, message, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, {"w": np.ones(2)})
    with pytest.raises(ValueError, match=message):
        checkpoints.save(step, tree)
    checkpoints.close()
    assert checkpoints.steps() == [7]


def test_files_and_links_among_the_checkpoints_are_passed_over(tmp_path, capsys):
    config = small_config(train__steps=2, penalty__beta=0.0)
    expected = run(config, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "7").write_text("a note")
    (folder / "8").symlink_to(folder / "2")
    (folder / "٣").mkdir()
    (tmp_path / "run" / "result.json").unlink()
    assert run(config, tmp_path / "run")["test"] == expected["test"]
    assert capsys.readouterr().out.count("passed over") == 2


def checkpoints_of(workdir):
    heard = []
    return Checkpoints(workdir, tell=heard.append), heard


@pytest.fixture
def two_checkpoints(tmp_path):
    """Checkpoints of steps 1 and 2, in which every weight is the step."""
    checkpoints = Checkpoints(tmp_path, config={"seed": 3, "hidden": (4, 5)})
    for step in (1, 2):
        checkpoints.save(step, {"w": np.full((2, 3), step, np.float32), "mask": np.ones(3, bool)})
    checkpoints.close()
    return tmp_path


def data_files(workdir, step):
    return [
        path
        for path in sorted((workdir / "checkpoints" / str(step)).rglob("*"))
        if path.is_file() and path.name != "commit_success.txt"
    ]


def test_a_flipped_bit_is_never_read(two_checkpoints):
    """Whatever byte of the newest is damaged: it reads as it was, or the one before counts."""
    passed_over = 0
    for path in data_files(two_checkpoints, 2):
        whole = path.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 4)):
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
            )
            checkpoints, heard = checkpoints_of(two_checkpoints)
            found = checkpoints.arrays()
            checkpoints.close()
            assert set(found["w"].ravel()) == ({1.0} if heard else {2.0}), (path, place)
            assert found["mask"].all()
            assert all("checkpoints/2 is damaged" in line and "\n" not in line for line in heard)
            passed_over += len(heard)
        path.write_bytes(whole)
    assert passed_over > 5


def damage(workdir, kind):
    newest = workdir / "checkpoints" / "2"
    if kind == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    elif kind == "half deleted":
        shutil.rmtree(newest / "default" / "d")
    elif kind == "a copy":
        shutil.rmtree(newest)
        shutil.copytree(workdir / "checkpoints" / "1", newest)
    elif kind == "cut short":
        longest = max(data_files(workdir, 2), key=lambda path: path.stat().st_size)
        longest.write_bytes(longest.read_bytes()[:-3])


@pytest.mark.parametrize("kind", ["empty", "half deleted", "a copy", "cut short"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(two_checkpoints, kind):
    damage(two_checkpoints, kind)
    checkpoints, heard = checkpoints_of(two_checkpoints)
    assert checkpoints.arrays()["w"][0, 0] == 1
    (line,) = heard
    assert f"Checkpoint {two_checkpoints}/checkpoints/2 is damaged (" in line
    checkpoints.remove_all_but(1)
    checkpoints.save(2, {"w": np.full((2, 3), 2, np.float32), "mask": np.ones(3, bool)})
    checkpoints.close()
    checkpoints, heard = checkpoints_of(two_checkpoints)
    assert checkpoints.arrays()["w"][0, 0] == 2
    assert heard == []
    checkpoints.close()


def test_where_all_are_damaged_none_is_taken(two_checkpoints):
    damage(two_checkpoints, "empty")
    for path in data_files(two_checkpoints, 1):
        path.unlink()
    checkpoints, heard = checkpoints_of(two_checkpoints)
    with pytest.raises(ValueError, match=r"every checkpoint in .* is damaged: delete that folder"):
        checkpoints.arrays()
    assert len(heard) == 2
    checkpoints.close()


def test_a_checkpoint_knows_its_config(two_checkpoints):
    checkpoints, _ = checkpoints_of(two_checkpoints)
    assert checkpoints.newest().config == {"seed": 3, "hidden": [4, 5]}
    checkpoints.close()


@pytest.mark.parametrize(
    "what", fast_among(["checkpoint", "config.json", "result.json", "metrics.jsonl"], "checkpoint")
)
def test_a_run_with_one_damaged_file_ends_as_it_would_have(finished, what, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    path = workdir / what
    if what == "checkpoint":
        shutil.rmtree(workdir / "checkpoints" / "40" / "default")
        (workdir / "result.json").unlink()
    else:
        text = path.read_text()
        path.write_text(text[: len(text) // 2] + "\x00{" + text[len(text) // 2 + 2 :])
    if what == "metrics.jsonl":
        (workdir / "result.json").unlink()
    result = run(small_config(), workdir)
    assert "damaged" in capsys.readouterr().out or what == "config.json"
    for name in result.keys() - {"wall_seconds"}:
        assert result[name] == finished[1][name], name
    assert_same_run(finished[0], workdir)
    assert json.loads((workdir / "config.json").read_text()) == json.loads(
        (finished[0] / "config.json").read_text()
    )
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


@pytest.mark.usefixtures("blank_images")
@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def full(manager, step, **options):
        if step > 15:
            raise ValueError("RESOURCE_EXHAUSTED: /long/path: No space left on device [code='28']")
        return save(manager, step, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        with pytest.raises(OSError, match="a checkpoint cannot be written: No space left") as error:
            run(small_config(), tmp_path)
    assert error.value.filename == str(tmp_path / "checkpoints")
    assert Checkpoints(tmp_path).steps() == [15]
    assert run(small_config(), tmp_path)["steps"] == 40
