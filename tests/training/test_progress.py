"""How far a run is, where there is no terminal."""

import io

from rich.console import Console

from cka_sr_jax.training.progress import ProgressReporter


def test_without_a_terminal_a_line_shows_steps_values_and_rate():
    console = Console(file=io.StringIO())
    with ProgressReporter(10, done=4, console=console) as progress:
        progress.update(7, {"loss": 0.5, "penalty": 0.25, "other": 1.0})
    (line,) = filter(None, console.file.getvalue().splitlines())  # rich 13 adds an empty one
    assert line.startswith("step 7/10  loss 0.5000  penalty 0.2500  ")
    assert "steps/s" in line
    assert line.endswith(" s left")
