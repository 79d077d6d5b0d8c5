"""Where a run can be watched while it trains: TensorBoard, and Weights & Biases.

Both take the records of metrics.jsonl, histograms of the kept weights, and CKA as an image.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from matplotlib import colormaps

from cka_sr_jax.report.figures import stage_boundaries

Values = Mapping[str, float | None]

BINS = 64  # of a histogram
SIDE = 128  # pixels of the CKA image, about; TensorBoard enlarges it
# Seconds that training waits for W&B's server at the start of a run, and for the rest of the upload
# at its end. What has not been sent by then is still on the disk.
START_TIMEOUT, FINISH_TIMEOUT = 30, 120


@runtime_checkable
class Watcher(Protocol):
    """A place where a run can be watched."""

    def scalars(self, split: str, step: int, values: Values) -> None:
        """Show the finite values of a record of metrics.jsonl."""

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Show how the values of each array are distributed."""

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Show an image, uint8 [height, width, 3]."""


class TensorBoard:
    """Events in `workdir`/tensorboard.

    They are written at once, and not by the thread of tensorboardX's `SummaryWriter`, which would
    hang at a full disk.
    """

    def __init__(self, workdir: Path, resumed_step: int) -> None:
        """Open the events; TensorBoard hides those of later steps than `resumed_step`."""
        # Here, as figures of this package need none.
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        self._summary, self._event, self._value = summary, event_pb2.Event, summary_pb2.Summary
        self._events = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(resumed_step + 1, session_log=start)

    def _write(self, step: int, **what: Any) -> None:
        self._events.write_event(self._event(wall_time=time.time(), step=step, **what))

    def scalars(self, split: str, step: int, values: Values) -> None:
        """A curve for each value."""
        shown = [
            self._value.Value(tag=f"{split}/{name}", simple_value=value)
            for name, value in values.items()
            if value is not None and name != "epoch"
        ]
        self._write(step, summary=self._value(value=shown))
        self._events.flush()

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Under the tags weights/PATH."""
        for path, array in arrays.items():
            self._write(step, summary=self._summary.histogram(f"weights/{path}", array, bins=BINS))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Under its name as the tag."""
        self._write(step, summary=self._summary.image(name, pixels, dataformats="HWC"))

    def close(self) -> None:
        """Flush and close the events."""
        self._events.close()


class WeightsAndBiases:
    """A run of W&B, which never costs the training anything but time.

    Where its server cannot be reached or nobody is logged in, the run is recorded offline, for
    `wandb sync`. If anything else fails, that is said in one line, and training goes on without.
    A work directory that is resumed resumes its W&B run, whose id is in `workdir`/wandb/id.
    """

    def __init__(
        self, workdir: Path, project: str, config: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        """Start or resume the run; its files are in `workdir`/wandb.

        Args:
          project: the project's name.
          config: nested, shown beside the run.
          say: prints a line.
        """
        self._say = say
        self._run: Any = None
        self._first_step = 0
        self._try(lambda _: self._start(workdir, project, config), started=True)

    def _start(self, workdir: Path, project: str, config: Mapping[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        wandb.setup(settings=wandb.Settings(silent=True))  # and so it asks for no login
        options: dict[str, Any] = {
            "project": project, "id": _run_id(workdir), "name": workdir.resolve().name,
            "dir": str(workdir), "config": dict(config), "resume": "allow",
            "allow_val_change": True,
            "reinit": "create_new",  # runs that train together are open together
        }  # fmt: skip
        settings = wandb.Settings(
            console="off",  # it would take the progress bar for text
            init_timeout=START_TIMEOUT,
            finish_timeout=FINISH_TIMEOUT,
        )
        try:
            self._run = wandb.init(**options, settings=settings)
        except Exception as error:
            self._say(f"W&B did not start ({_line(error)}), so this run is recorded offline.")
            self._run = wandb.init(**options, settings=settings, mode="offline")
        if self._run.offline:
            self._say(f"W&B is offline; to send this run: wandb sync {Path(self._run.dir).parent}")
        else:
            self._say(f"W&B: {self._run.url}")
        self._first_step = self._run.step  # an earlier record was sent before the run was resumed

    def scalars(self, split: str, step: int, values: Values) -> None:
        """A curve for each value."""
        self._log(step, lambda: {f"{split}/{name}": v for name, v in values.items()
                                 if v is not None})  # fmt: skip

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Under the keys weights/PATH."""
        self._log(step, lambda: {
            f"weights/{path}": self._wandb.Histogram(np_histogram=np.histogram(array, BINS))
            for path, array in arrays.items()
        })  # fmt: skip

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Under its name as the key."""
        self._log(step, lambda: {name: self._wandb.Image(pixels)})

    def _log(self, step: int, values: Callable[[], dict[str, Any]]) -> None:
        if step >= self._first_step:
            self._try(lambda run: run.log(values(), step=step))

    def finish(self, result: Mapping[str, Any], heatmap: Path) -> None:
        """Show the content of result.json as the summary, and the report's heat map; then close."""
        self._try(lambda run: run.summary.update(dict(result)))
        if heatmap.exists():
            self._try(lambda run: run.log({"cka_heatmap": self._wandb.Image(str(heatmap))}))
        self.close()

    def close(self, failed: bool = False) -> None:
        """Wait until all has been sent, at most FINISH_TIMEOUT seconds, and end the run."""
        self._try(lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _try(self, act: Callable[[Any], Any], started: bool = False) -> None:
        if self._run is None and not started:
            return
        try:
            act(self._run)
        except Exception as error:
            self._run = None
            self._say(f"W&B failed ({_line(error)}), so it shows no more of this run; "
                      "metrics.jsonl and TensorBoard have all.")  # fmt: skip


def _run_id(workdir: Path) -> str:
    """The id of the work directory's W&B run: the stored one, or a new one that is then stored."""
    path = workdir / "wandb" / "id"
    stored = path.read_text().strip() if path.exists() else ""
    if not stored:
        stored = secrets.token_hex(4)
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{stored}\n")
    return stored


def _line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:200]


def cka_pixels(matrix: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """What `cka_heatmap` draws without its text, in a hundredth of the time: uint8 [h, w, 3].

    Args:
      matrix: [L, L].
      groups: L stage names, between which there are lines.
    """
    side = max(1, SIDE // len(matrix))  # of a pair of features
    colors = colormaps["viridis"].with_extremes(bad="lightgray")
    pixels = colors(matrix.clip(0, 1), bytes=True)[..., :3].repeat(side, 0).repeat(side, 1)
    for i in stage_boundaries(groups):
        pixels[i * side - 1 : i * side + 1] = 255
        pixels[:, i * side - 1 : i * side + 1] = 255
    return pixels
