"""TensorBoard's events and the run of Weights & Biases, by a made-up wandb."""

import errno
import io

import numpy as np
import pytest
from PIL import Image
from tensorboardX.record_writer import RecordWriter

from cka_sr_jax.report.metrics import MetricWriter
from cka_sr_jax.report.watch import TensorBoard, WeightsAndBiases, cka_pixels
from tests.report.events import events
from tests.report.fake_wandb import FakeRun, install

MATRIX = np.array([[1.0, -0.1, np.nan], [-0.1, 1.0, 0.5], [np.nan, 0.5, 1.0]])


@pytest.fixture
def wandb(monkeypatch):
    return install(monkeypatch)


@pytest.fixture
def said():
    return []


def write_all(workdir, *also):
    writer = MetricWriter(workdir, 0, also)
    writer.write("train", 3, {"epoch": 0.5, "loss": 2.0, "penalty": float("nan")})
    writer.show_weights(4, {"a/kernel": np.array([-1.0, 0.5, 2.0], np.float32), "b": np.zeros(0)})
    writer.show_cka(4, MATRIX, ["one", "one", "two"])
    writer.close()


def test_tensorboard_shows_curves_histograms_and_an_image(tmp_path):
    write_all(tmp_path)
    found = events(tmp_path)
    assert found.keys() == {"train/loss", "weights/a/kernel", "cka"}  # none of no weights
    assert found["train/loss"] == [(3, 2.0)]
    ((step, histogram),) = found["weights/a/kernel"]
    assert (step, histogram.num, histogram.min, histogram.max) == (4, 3, -1, 2)
    assert sum(histogram.bucket) == 3
    ((step, image),) = found["cka"]
    pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(pixels, cka_pixels(MATRIX, ["one", "one", "two"]))
    assert step == 4


def test_pixels_have_the_colors_of_the_heat_map_and_a_line_between_stages():
    pixels = cka_pixels(MATRIX, ["one", "one", "two"])
    side = len(pixels) // 3
    assert pixels.shape == (3 * side, 3 * side, 3)
    middles = pixels[side // 2 :: side, side // 2 :: side]
    assert middles[0, 0].tolist() == [253, 231, 36]  # viridis from one end
    assert middles[0, 1].tolist() == [68, 1, 84]  # to the other, where what is below 0 is too
    assert middles[0, 2].tolist() == [211, 211, 211]
    assert (pixels[2 * side] == 255).all()
    assert (pixels[:, 2 * side] == 255).all()
    assert not (pixels[side] == 255).all()
    assert cka_pixels(np.ones((500, 500)), ["one"] * 500).shape == (500, 500, 3)


def test_wandb_gets_the_same_and_the_result(tmp_path, wandb, said):
    run = WeightsAndBiases(tmp_path, "sparse", {"seed": 1}, said.append)
    write_all(tmp_path, run)
    (started,) = wandb.runs
    assert said == ["W&B: https://wandb.test/run"]
    assert started.options["project"] == "sparse"
    assert started.options["name"] == tmp_path.name
    assert started.options["config"] == {"seed": 1}
    assert started.logged == {
        3: {"train/epoch": 0.5, "train/loss": 2.0},
        4: {"weights/a/kernel": ("histogram", 3), "cka": ("image", (126, 126, 3))},
    }
    assert started.exit_code is None  # the result is to come
    heatmap = tmp_path / "cka_heatmap.png"
    heatmap.write_bytes(b"")
    run.finish({"test": {"accuracy": 0.9}}, heatmap)
    assert started.summary == {"test": {"accuracy": 0.9}}
    assert started.logged[None] == {"cka_heatmap": ("image", str(heatmap))}
    assert started.exit_code == 0
    run.close()  # a second time does nothing


def test_a_work_directory_resumes_its_run_and_sends_no_step_twice(tmp_path, wandb, said):
    for name, step in (("one", 0), ("one", 3), ("two", 0)):
        wandb.step = step
        (tmp_path / name).mkdir(exist_ok=True)
        run = WeightsAndBiases(tmp_path / name, "sparse", {}, said.append)
        for done in (2, 3, 4):
            run.scalars("train", done, {"loss": 1.0})
        run.close(failed=True)
    first, resumed, other = wandb.runs
    assert first.options["id"] == resumed.options["id"] != other.options["id"]
    assert first.options["resume"] == "allow"
    assert list(first.logged) == [2, 3, 4]
    assert list(resumed.logged) == [3, 4]
    assert first.exit_code == 1


def test_without_a_network_it_is_recorded_offline(tmp_path, wandb, said):
    wandb.network = False
    run = WeightsAndBiases(tmp_path, "sparse", {}, said.append)
    run.scalars("train", 1, {"loss": 1.0})
    assert wandb.runs[0].logged
    assert said == [
        "W&B did not start (No API key configured), so this run is recorded offline.",
        f"W&B is offline; to send this run: wandb sync {tmp_path}/wandb/run",
    ]


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failure_is_said_once_and_costs_nothing(fails, tmp_path, wandb, said, monkeypatch):
    def broken(*_, **__):
        raise ConnectionError("gone")

    monkeypatch.setattr(wandb if fails == "init" else FakeRun, fails, broken)
    run = WeightsAndBiases(tmp_path, "sparse", {}, said.append)
    for step in (1, 2):
        run.scalars("train", step, {"loss": 1.0})
    run.finish({}, tmp_path / "missing.png")
    told = [line for line in said if line.startswith("W&B failed")]
    assert told == ["W&B failed (gone), so it shows no more of this run; metrics.jsonl and "
                    "TensorBoard have all."]  # fmt: skip


def test_a_full_disk_is_an_error_of_the_record_that_meets_it(tmp_path, monkeypatch):
    """And not one of a thread, after which the next records would wait forever."""
    board = TensorBoard(tmp_path, 0)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RecordWriter, "write", full)
    for _ in range(20):
        with pytest.raises(OSError, match="No space left"):
            board.scalars("train", 1, {"loss": 0.5})
    board.close()
