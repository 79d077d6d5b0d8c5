"""`run(config, workdir)`: from a config to a trained sparse network and its report."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.report import console_table, read_metrics, total_row, write_report
from cka_sr_jax.sparsity import density, epsilon_sparsity, get_masks, mask_metrics
from cka_sr_jax.training.build import (
    Experiment,
    check_workdir,
    prepare,
    step_indices,
    train_on_examples,
    training_data,
)
from cka_sr_jax.training.config import validate
from cka_sr_jax.training.evaluation import (
    EPSILONS,
    cka_function,
    eval_function,
    feature_groups,
    kernel_positions_of,
    layer_rows_of,
    mean_outlier_share,
    stage_means,
)
from cka_sr_jax.training.learned_masks import ReparametrisedModel
from cka_sr_jax.training.metrics import ProgressReporter
from cka_sr_jax.training.parallel import map_devices, replicate
from cka_sr_jax.training.pruning import PRUNERS
from cka_sr_jax.training.recorder import Recorder, finite, write_json
from cka_sr_jax.training.step import TrainState


def run(config: ConfigDict, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Train what `config` describes in `workdir`, evaluate it once on test data, write the report.

    The directory then holds config.json, metrics.jsonl, TensorBoard events, checkpoints/, report/
    and result.json, whose content is returned. A run that was interrupted goes on from its newest
    checkpoint and ends with the parameters it would have had otherwise, bit for bit where the
    hardware computes the same twice; one that is complete is left alone.

    Raises:
      ConfigError: the config cannot work, or `workdir` belongs to another one; nothing is written.
    """
    console = console or Console(soft_wrap=True)
    result_file, report = Path(workdir) / "result.json", Path(workdir) / "report" / "index.html"
    if result_file.exists() and report.exists():
        validate(config, len(jax.local_devices()))
        check_workdir(config, Path(workdir))
        result = json.loads(result_file.read_text())
        console.print(f"This run is complete: test accuracy {result['test']['accuracy']:.4f}.")
        console.print(f"Report: {report}", highlight=False)
        return result
    experiment = prepare(config, workdir)
    _describe(experiment, console)
    state, seconds, selected = train(experiment, console)
    return finish(experiment, state, seconds, selected, console)


def train(experiment: Experiment, console: Console) -> tuple[TrainState, float, dict[str, Any]]:
    """The training loop; returns the selected weights' state, the seconds, and the selection.

    Raises:
      SystemExit: at SIGTERM or Ctrl-C, once a checkpoint is saved.
    """
    config = experiment.config
    recorder = Recorder(experiment, console)
    state = replicate(recorder.state, experiment.devices)
    data = replicate(training_data(experiment), experiment.devices)
    step_function = map_devices(
        train_on_examples(experiment, config.seed, config.penalty.beta),
        experiment.devices,
        parallel=config.train.parallel,
        donate_state=True,
    )
    with (
        ProgressReporter(experiment.steps, recorder.start, console) as progress,
        stop_signals() as stop,
    ):
        recorder.start_clock()
        for step in range(recorder.start, experiment.steps):
            state, metrics = step_function(state, step_indices(experiment, step), data)
            stopping = bool(stop)  # a signal that comes later is for the next step
            values = recorder.record(step + 1, metrics, lambda: state, save=stopping)  # noqa: B023
            if values:
                progress.update(step + 1, values)
            if stopping:
                recorder.close()
                raise SystemExit(
                    f"Stopped at step {step + 1} of {experiment.steps}; the same command goes on "
                    "there."
                )
    return recorder.finish(state)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A list that SIGTERM or Ctrl-C fills, so that the loop can save before it stops."""
    received: list[int] = []

    def on_signal(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:  # an impatient second Ctrl-C does not wait
            raise KeyboardInterrupt  # and SIGTERM is sent twice by those that stop whole groups
        received.append(number)

    try:
        before = {s: signal.signal(s, on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: leave signals to whoever owns them
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(
    experiment: Experiment,
    state: TrainState,
    seconds: float,
    selected: dict[str, Any],
    console: Console,
) -> dict[str, Any]:
    """Evaluate on the test set, then write the report and result.json, and print where they are."""
    dataset, groups = experiment.dataset, feature_groups(experiment)
    evaluate = eval_function(experiment)
    test = evaluate(state, dataset.test_images, dataset.test_labels)
    validation = None
    if len(dataset.validation_labels):
        validation = evaluate(state, dataset.validation_images, dataset.validation_labels)
    matrix = cka_function(experiment)(state)
    rows = layer_rows_of(state, kernel_positions_of(experiment))
    total = total_row(rows)
    *_, logged = (
        record
        for record in read_metrics(experiment.workdir / "metrics.jsonl")
        if record["split"] == "train"
    )
    weights = jax.device_get(state.params)
    if isinstance(experiment.model, ReparametrisedModel):
        weights = experiment.model.method.weights(weights)
    content = {
        "test": {**test, **selected},
        "validation": validation,
        **{name: float(value) for name, value in mask_metrics(state.opt_state).items()},
        "parameters": total.parameters,
        "parameters_kept": total.kept,
        "flops": total.flops,
        "flops_dense": total.flops_dense,
        "training_flops": logged["training_flops"],
        **stage_means(matrix, groups),
        "outlier_share": mean_outlier_share(experiment, state),
        "epsilon_sparsity": {
            f"{epsilon:g}": float(epsilon_sparsity(weights, epsilon)) for epsilon in EPSILONS
        },
        "steps": experiment.steps,
        "epochs": experiment.steps / experiment.steps_per_epoch,
        "wall_seconds": seconds,
        "devices": f"{len(experiment.devices)} x {experiment.devices[0].device_kind}",
        "jax": jax.__version__,
    }
    result = finite(content)
    report = write_report(
        experiment.workdir,
        result=result,
        layers=rows,
        cka_matrix=matrix,
        feature_names=[f"{stage}.{i}" for stage, count in groups.items() for i in range(count)],
        feature_groups=[stage for stage, count in groups.items() for _ in range(count)],
    )
    write_json(experiment.workdir / "result.json", result)  # last: it says that the run is finished
    console.print(console_table(rows))
    console.print(
        f"Test accuracy {test['accuracy']:.4f}, density {result['density']:.4f}, "
        f"{seconds:.1f} s of training.",
        highlight=False,
    )
    if result["test"]["loss"] is None:
        console.print("This run diverged: its loss is not a finite number.")
    console.print(f"Report: {report}", soft_wrap=True, highlight=False)
    return result


def _describe(experiment: Experiment, console: Console) -> None:
    config, data = experiment.config, experiment.dataset
    shape = "x".join(map(str, data.train_images.shape[1:]))
    kept = float(density(get_masks(experiment.state.opt_state)))
    if config.sparsity.rule in PRUNERS:  # a run that resumes has the masks in its checkpoint
        kept = config.sparsity.density
    penalty = "CKA-SR" if config.penalty.similarity == "cka" else config.penalty.similarity.upper()
    console.print(
        f"{data.name}: {len(data.train_labels)} training, {len(data.validation_labels)} validation "
        f"and {len(data.test_labels)} test images of {shape} in {data.num_classes} classes\n"
        f"{config.model.name}: {sum(p.size for p in jax.tree.leaves(experiment.state.params)):,} "
        f"parameters; rule {config.sparsity.rule}, density {kept:.4f} of its "
        f"kernels; {penalty} beta {config.penalty.beta:g}\n"
        f"{experiment.steps} steps of {config.train.batch_size} images on "
        f"{len(experiment.devices)} x {experiment.devices[0].device_kind}",
        highlight=False,
    )
