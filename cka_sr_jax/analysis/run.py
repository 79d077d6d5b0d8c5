"""`Run`: a finished run as an object, with its numbers, weights and figures."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from cka_sr_jax.models import create_model
from cka_sr_jax.report import cka_heatmap, learning_curves
from cka_sr_jax.report.figures import Figure
from cka_sr_jax.training import load_variables

REPORT_AGAIN = "delete the run's result.json and give its command again, which writes the report"


class Run(NamedTuple):
    """A finished run; a notebook shows its report.

    Attributes:
      name: its folder, or its file and line, for messages.
      config: of config.json, nested.
      result: of result.json, nested.
      metrics: the records of metrics.jsonl, in order; none if it is not stored.
      cka_matrix: {"features": L names, "values": L lists of L}, the CKA between the features of
        the trained network; None if it is not stored.
      folder: where its checkpoints are; None for a run of a JSON-lines file.
    """

    name: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = ()
    cka_matrix: Mapping[str, Any] | None = None
    folder: Path | None = None

    @property
    def result_file(self) -> str:
        """Where its result is stored, for messages."""
        return self.name if self.folder is None else f"{self.folder}/result.json"

    @property
    def variables(self) -> dict[str, Any]:
        """{"params", "batch_stats"} of the weights that the result is of, for `model.apply`.

        Raises:
          ValueError: a run of a file, which holds no weights; else as `load_variables`.
        """
        if self.folder is None:
            raise ValueError(f"{self.name} holds no weights: name the run's folder instead.")
        return load_variables(self.folder)

    @property
    def model(self) -> nn.Module:
        """The run's model, so that `run.model.apply(run.variables, images, train=False)` works.

        The images are normalized as the config says.

        Raises:
          ValueError: as `variables`.
        """
        settings = self.config["model"]
        classes = len(self.variables["params"]["head"]["bias"])
        dtype, options = jnp.dtype(settings["dtype"]), settings["options"]
        return create_model(settings["name"], classes, dtype=dtype, **options)

    def __repr__(self) -> str:
        """Its name and its test accuracy; all numbers are in `result`."""
        accuracy = self.result.get("test", {}).get("accuracy")
        return f"Run({self.name!r}" + (f", test accuracy {accuracy:.4f})" if accuracy else ")")

    def columns(self, split: str = "train") -> dict[str, list[float | None]]:
        """The metrics of a split as columns of equal length, such as for `pandas.DataFrame`.

        Args:
          split: "train", "validation", "masks" or "layers".

        Raises:
          ValueError: no record of this split.
        """
        records = [record for record in self.metrics if record["split"] == split]
        if not records:
            there = sorted({str(record["split"]) for record in self.metrics})
            raise ValueError(
                f"{self.name} has no metrics of {split!r}: it has {', '.join(there) or 'none'}."
            )
        names = dict.fromkeys(name for record in records for name in record if name != "split")
        return {name: [record.get(name) for record in records] for name in names}

    def curves(self) -> Figure:
        """Loss, accuracy and learning rate over epochs."""
        return learning_curves(self.metrics)

    def heatmap(self) -> Figure:
        """CKA between all features of the trained network.

        Raises:
          ValueError: the run has no CKA matrix.
        """
        matrix = matrix_of(self)
        names = matrix["features"]
        stages = [name.rpartition(".")[0] for name in names]
        return cka_heatmap(np.array(matrix["values"]), names, stages)

    def _repr_html_(self) -> str:
        """The report's page, in a frame so that its style stays inside; else the result."""
        page = self.folder / "report" / "index.html" if self.folder else None
        if page is None or not page.exists():
            return f"<pre>{html.escape(json.dumps(self.result, indent=2))}</pre>"
        content = html.escape(page.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{content}" style="width: 100%; height: 40rem; border: 0"></iframe>'


def open_run(workdir: str | Path) -> Run:
    """The finished run in a work directory: its numbers, weights and figures.

      run(config, "runs/first")
      first = open_run("runs/first")  # at the end of a cell, a notebook shows its report
      first.result["test"]["accuracy"], first.columns("train")["loss"]
      model.apply(first.variables, images, train=False)

    Raises:
      ValueError: `workdir` holds no finished run, a damaged one, or several.
    """
    from cka_sr_jax.analysis.runs import load_runs  # a command too, so not before it runs

    found = load_runs([workdir])
    if len(found) > 1:
        raise ValueError(f"{workdir} holds {len(found)} runs: name the folder of one.")
    return found[0]


def matrix_of(run: Run) -> Mapping[str, Any]:
    """The run's `cka_matrix`.

    Raises:
      ValueError: it has none.
    """
    if run.cka_matrix is not None:
        return run.cka_matrix
    if run.folder and not (run.folder / "report").exists():
        raise ValueError(f"{run.folder}/report is missing, and CKA with it: {REPORT_AGAIN}.")
    raise ValueError(f"{run.name} has no CKA matrix: its model sows no two features.")
