"""A finished run that several test files look at."""

import io

import pytest
from rich.console import Console

from cka_sr_jax.workflows import run
from tests.training.runs import small_config


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run: its directory, its result and what it printed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    printed = io.StringIO()
    result = run(small_config(), workdir, Console(file=printed))
    return workdir, result, printed.getvalue().strip().splitlines()
