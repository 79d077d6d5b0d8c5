"""How a point of a grid stands, as its directory says: finished, failed, or in use."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict
from rich.console import Console

from cka_sr_jax.training import ConfigError
from cka_sr_jax.training.workdir import check_workdir, read_result

ELSEWHERE = "running elsewhere"
_FAILURE = "failed.txt"


def check_no_run(workdir: Path) -> None:
    """Raise ConfigError if a run lives in the grid's directory itself, beside its points."""
    if any((workdir / name).exists() for name in ("config.json", "result.json")):
        raise ConfigError(
            f"--workdir={workdir} holds a run, and a grid's points beside it would be taken for "
            "one experiment: name another directory."
        )


def check_folder(config: ConfigDict, folder: Path) -> None:
    """Raise ConfigError if `folder` is damaged or holds another config's run."""
    # A point that failed before it began holds nothing but failed.txt, which is fine.
    if not (folder / _FAILURE).exists() or (folder / "config.json").exists():
        check_workdir(config, folder)


def has_finished(folder: Path) -> bool:
    """Whether the run has its result, undamaged."""
    return read_result(folder, len, Console(quiet=True)) is not None


def ended(folder: Path, retry: bool = False) -> str:
    """How the point ended before, such as "finished before"; "" if it has to run.

    Args:
      retry: a point that failed before has to run.
    """
    failure = folder / _FAILURE
    if failure.exists() and not retry:
        reason = failure.read_text(errors="replace").strip().splitlines()[:1]
        return f"failed before: {''.join(reason) or f'{failure} does not say why'}"
    return "finished before" if has_finished(folder) else ""


def record_failure(folder: Path, reason: str, details: str = "") -> str:
    """Write failed.txt, whose first line is the reason; returns the point's state."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FAILURE).write_text(f"{reason}\n\n{details}" if details else f"{reason}\n")
    return f"failed: {reason}"


def forget_failure(folder: Path) -> None:
    """Remove failed.txt, before the point runs again."""
    (folder / _FAILURE).unlink(missing_ok=True)
