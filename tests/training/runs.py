"""A small run, and how to read what it left."""

import json
import time

import numpy as np

from cka_sr_jax.training import (
    Checkpoints,
    default_config,
)


def small_config(**fields):
    config = default_config()
    config.model.options.hidden = (32, 32, 32)
    config.train.steps = 40
    config.train.batch_size = 64
    config.train.log_every = 10
    config.checkpoint.every = 15
    config.sparsity.density = 0.2
    config.penalty.every = 2
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return config


def arrays(workdir):
    checkpoints = Checkpoints(workdir)
    found = checkpoints.arrays()
    checkpoints.close()
    return {path: value for path, value in found.items() if path != "seconds"}


def assert_same_run(one, two):
    first, second = arrays(one), arrays(two)
    assert first.keys() == second.keys()
    for path, value in first.items():
        np.testing.assert_array_equal(value, second[path], err_msg=path)


def records(workdir, split):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["split"] == split]


def config_with(**fields):
    """A config with these fields, whatever their types: what a user may write."""
    config = default_config()
    config.model.options.hidden = (16, 16)
    for field, value in fields.items():
        with config.unlocked(), config.ignore_type():
            config.update_from_flattened_dict({field.replace("__", "."): value})
    return config


def wait_for_step(workdir, step):
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline:
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        time.sleep(0.01)
    raise AssertionError("no training")
