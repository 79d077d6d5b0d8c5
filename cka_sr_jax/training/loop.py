"""One ordinary run: config -> plan -> state -> steps -> `TrainResult` -> result and report."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax._paths import matches
from cka_sr_jax.models import stacked_layers
from cka_sr_jax.report import say
from cka_sr_jax.sparsity import Masks, density, get_masks, leaf_paths
from cka_sr_jax.training.build import RunPlan, build_plan, new_state, start_of
from cka_sr_jax.training.evaluation import Evaluator, make_evaluator
from cka_sr_jax.training.hosts import agreed, is_first, of_first, on_any
from cka_sr_jax.training.input import open_feed, own_numbers, train_on_examples, training_data
from cka_sr_jax.training.metrics import pack
from cka_sr_jax.training.parallel import branches_wait, map_devices, replicate
from cka_sr_jax.training.penalty import PENALTY_NAMES
from cka_sr_jax.training.progress import ProgressReporter
from cka_sr_jax.training.recorder import Recorder
from cka_sr_jax.training.result import TrainResult, report_run
from cka_sr_jax.training.selection import select
from cka_sr_jax.training.signals import stop_signals
from cka_sr_jax.training.snapshot import Snapshot, newest_snapshot
from cka_sr_jax.training.start import source_of
from cka_sr_jax.training.step import TrainState
from cka_sr_jax.training.workdir import check_workdir, read_result, start_workdir


def prepare(config: ConfigDict) -> RunPlan:
    """Build all that the config names and check that it works together; nothing is written.

    Args:
      config: one that `validate` has passed.

    Raises:
      ConfigError: in one sentence, for whatever cannot work.
    """
    return build_plan(config)


def run(plan: RunPlan, workdir: str | Path, console: Console | None = None) -> dict[str, Any]:
    """Train the plan in `workdir`, evaluate it once on test data, and write the report.

    The directory then holds config.json, metrics.jsonl, TensorBoard events, checkpoints/, report/
    and result.json, whose content is returned. A run that was interrupted goes on from its newest
    checkpoint and ends with the parameters it would have had otherwise, bit for bit where the
    hardware computes the same twice.

    Raises:
      ConfigError: the plan's method cannot choose its masks, or `workdir` holds something else;
        nothing is written.
      SystemExit: at SIGTERM or Ctrl-C, once a checkpoint is saved.
    """
    console, workdir = console or Console(soft_wrap=True), Path(workdir)
    evaluator = agreed(lambda: make_evaluator(plan))
    trained = train(plan, workdir, evaluator, console)
    return report_run(plan, workdir, trained, evaluator, console)


def show_finished(workdir: Path, console: Console) -> dict[str, Any] | None:
    """Print and return the result of a run that has finished, else None."""
    report = workdir / "report" / "index.html"
    if not report.exists():
        return None
    result = read_result(workdir, _complete, console)
    if result is not None:
        say(console, _complete(result))
        say(console, f"Report: {report}")
    return result


def _complete(result: dict[str, Any]) -> str:
    return f"This run is complete: test accuracy {result['test']['accuracy']:.4f}."


def train(
    plan: RunPlan,
    workdir: Path,
    evaluator: Evaluator,
    console: Console,
    first_state: Callable[[RunPlan], TrainState] = new_state,
) -> TrainResult:
    """The training loop, from the newest checkpoint in `workdir` or from the first state.

    Raises:
      ConfigError, SystemExit: as `run`.
    """
    of_first(lambda: check_workdir(plan.config, workdir))
    start = newest_snapshot(plan, workdir, partial(say, console))
    if start is None:
        start = Snapshot.at_start(plan, first_state(plan))
    first_step = int(start.state.step)
    of_first(lambda: start_workdir(plan.config, workdir))
    describe(plan, start.state, console)
    if first_step:
        say(console, f"Resuming from step {first_step} of {plan.steps}.")
    recorder = Recorder(plan, workdir, start, evaluator, console)
    state = replicate(start.state, plan.devices)
    data = replicate({**training_data(plan), **own_numbers(plan)}, plan.devices)
    function_of = step_functions(plan)
    metrics = None
    with (
        recorder,
        open_feed(plan, first_step) as feed,
        ProgressReporter(plan.steps, first_step, console) as progress,
        stop_signals(console) as stop,
    ):
        recorder.start_clock()
        for step in range(first_step, plan.steps):
            state, metrics = function_of(step)(state, feed.next(metrics), data)
            # A signal that comes later is for the next step.
            stopping, due = on_any(bool(stop), is_first() and recorder.save_is_due)
            values = recorder.record(
                step + 1,
                metrics,
                lambda: state,  # noqa: B023
                save=stopping or due,
                waited=feed.waited,
            )
            if values:
                progress.update(step + 1, values)
            if recorder.diverged or stopping:
                break
        recorder.close()  # here, so that a signal does not end the program as it writes
        if any(on_any(bool(stop))) and not recorder.diverged:
            raise SystemExit(
                f"Stopped at step {step + 1} of {plan.steps}; the same command goes on there."
            )
    selected = select(plan, state, recorder.best)
    return TrainResult(
        state,
        selected,
        recorder.seconds(),
        recorder.flops,
        recorder.diverged,
        recorder.data_wait,
        recorder.wandb,
    )


def step_functions(plan: RunPlan) -> Callable[[int], Callable[..., Any]]:
    """`step -> function`: what takes that step on all devices, from 0 on.

    Its data are `training_data` and `own_numbers`. On a GPU, steps at which the masks stay are a
    program of their own where that is possible.
    """
    config = plan.config

    def mapped(may_change: bool) -> Callable[..., Any]:
        def take_step(state: TrainState, shard: Any, data: Any, axis_name: str | None) -> Any:
            # Arguments rather than constants, so that the points of a sweep share this program.
            beta = data["beta"] if config.penalty.beta else 0.0
            train_on = train_on_examples(plan, data["seed"], beta, may_change)
            state, metrics = train_on(state, shard, data, axis_name)
            return state, pack(metrics)

        return map_devices(
            take_step,
            plan.devices,
            parallel=config.train.parallel,
            donate_state=True,
            own_part=plan.dataset.is_streamed,
        )

    updates, every = plan.mask_updates, mapped(may_change=True)
    # A step that is skipped leaves its change of the masks to the next one.
    alike = not updates.any() or updates.all() or config.train.not_finite == "skip"
    if alike or not branches_wait(plan.devices):
        return lambda step: every
    between = mapped(may_change=False)
    return lambda step: every if updates[step] else between


def describe(plan: RunPlan, state: TrainState, console: Console) -> None:
    """Print what is about to train on what."""
    config, data = plan.config, plan.dataset
    shape = "x".join(map(str, data.train_images.shape[1:]))
    masks = get_masks(state.opt_state)
    kept, passes = jax.jit(lambda masks: (density(masks), _passes(plan, masks)))(masks)
    penalty = PENALTY_NAMES[config.penalty.similarity]
    if config.penalty.energy != "none":
        penalty += f", {config.penalty.energy} energy,"
    say(
        console,
        f"{data.name}: {len(data.train_labels)} training, {len(data.validation_labels)} validation "
        f"and {len(data.test_labels)} test images of {shape} in {data.num_classes} classes\n"
        f"{config.model.name}: {sum(p.size for p in jax.tree.leaves(state.params)):,} "
        f"parameters; method {config.sparsity.rule}, density {float(kept):.4f} of its kernels; "
        f"{penalty} beta {config.penalty.beta:g}\n"
        f"{plan.steps} steps of {config.train.batch_size} images on "
        f"{len(plan.devices)} x {plan.devices[0].device_kind}",
    )
    if config.model.start and not int(state.step):
        new = ", ".join(start_of(plan).new) or "nothing"
        say(console, f"Weights of {source_of(config)}; random at the start: {new}.")
    if empty := [path for path, some in passes.items() if not some]:
        say(
            console,
            f"Warning: {', '.join(empty)} keeps no weight at density {config.sparsity.density:g}, "
            "so nothing passes; raise sparsity.density, or name the layer in sparsity.exclude.",
        )


def _passes(plan: RunPlan, masks: Masks) -> dict[str, jax.Array]:
    """{path: whether it keeps a weight}, of a stack {"a layer of path": whether all do}."""
    stacked, passes = stacked_layers(plan.model), {}
    for path, mask in leaf_paths(masks):
        stack = max((n for pattern, n in stacked.items() if matches(pattern, path)), default=0)
        name = f"a layer of {path}" if stack else path
        passes[name] = mask.any(axis=tuple(range(stack, mask.ndim))).all()
    return passes
