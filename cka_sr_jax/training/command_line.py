"""What `launch.py` says of a command line: mistakes in one line each, and the fields for --help."""

from __future__ import annotations

import ast
import itertools
import re
import runpy
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cka_sr_jax.training.config import flatten, is_free
from cka_sr_jax.training.fields import FIELDS, unknown_field


def config_files(argv: Sequence[str]) -> list[str]:
    """The files that --config names, as `--config=FILE` or `--config FILE`."""
    joined = [match[1] for argument in argv if (match := re.match(r"--?config=(.*)", argument))]
    return joined + [b for a, b in itertools.pairwise(argv) if a in ("-config", "--config")]


def config_of_file(path: str) -> ConfigDict | str:
    """The config that this file gives, or in one line why it gives none.

    Args:
      path: of the file, and after a colon an argument for its get_config, if it takes one.
    """
    file, _, argument = path.rpartition(".py:")
    takes_argument = bool(file)
    path = f"{file}.py" if takes_argument else path
    file = f"The config file {path}"
    if Path(path).is_dir():
        return f"{file} is a folder: name a file in it that defines get_config."
    try:
        get_config = runpy.run_path(path).get("get_config")
        if not callable(get_config):
            return f"{file} has no function get_config: define one that returns the config."
        config = get_config(argument) if takes_argument else get_config()
    except OSError as error:
        return f"{file} cannot be read: {error.strerror or error}."
    except SyntaxError as error:
        where = error.filename or path
        return f"The config file {where} has a syntax error at line {error.lineno}: {error.msg}."
    except ImportError as error:
        return f"{file} imports what is not there: {error}."
    except SystemExit:
        return f"{file} ends the program: define get_config, and nothing that exits."
    except Exception as error:  # whatever the file's own code may raise
        return f"{file} fails{_line_in(path, error)}: {_reason(error)}"
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        return f"{file} has a get_config that returns {kind}: return default_config(), changed."
    return config


def _line_in(path: str, error: Exception) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
             if frame.filename == path]  # fmt: skip
    return f" at line {lines[-1]}" if lines else ""


def _reason(error: Exception) -> str:
    missing = re.search(r"'(\w+)'", str(error))
    if isinstance(error, AttributeError | KeyError) and missing:
        return (
            f"there is no field {missing[1]!r} yet; a group of the grid is made first, as in "
            "config.grid.penalty = ConfigDict({'beta': (0.0, 1e-4)})."
        )
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}."


def take_unset(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without those like --config.sparsity.update_every=none, and their fields.

    Only a field whose default is None, or the empty text, can be unset. If a field occurs twice,
    the last one counts.
    """
    rest, unset = [], dict[str, None]()
    for argument in argv:
        match = re.match(r"--?config\.([\w.]+)=(.*)", argument)
        optional = match and match[1] in FIELDS and FIELDS[match[1]].default in (None, "")
        if match and optional and match[2].lower() == "none":
            unset[match[1]] = None
            continue
        if match:
            unset.pop(match[1], None)
        rest.append(argument)
    return rest, list(unset)


def take_new_options(
    argv: Sequence[str], config: ConfigDict
) -> tuple[list[str], dict[str, str | bool | int | float | tuple[Any, ...]]]:
    """The arguments without the options of the model that the config does not set, and these.

    {"model.options.stem": "imagenet"} of --config.model.options.stem=imagenet. A value is read as
    Python, and is a text where that fails.
    """
    known = set(config.get("model", {}).get("options", {}))
    rest, new = [], {}
    for argument in argv:
        match = re.match(r"--?config\.(model\.options\.(\w+))=(.*)", argument)
        if match is None or match[2] in known:
            rest.append(argument)
            continue
        text = match[3].capitalize() if match[3].lower() in ("true", "false") else match[3]
        try:
            new[match[1]] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            new[match[1]] = text
    return rest, new


def override_problem(error: Exception, argv: Iterable[str]) -> str:
    """What is wrong with the arguments --config.FIELD=VALUE, with which the flags failed so."""
    refused = re.match(r"flag --config\.([\w.]+)=(.*?): ", str(error), re.DOTALL)
    if refused and refused[1] in FIELDS:
        name, text = refused.groups()
        if problem := FIELDS[name].problem(name, text):
            return f"--config.{problem}"
    missing = re.search(r"'(\w+)\\?'", str(error))
    for argument in argv:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match is None:
            continue
        name = match[1]
        if is_free(name):
            if missing and missing[1] in name.split("."):
                return (
                    f"{name} is not an axis of this config's grid: set it in the config file "
                    "before its values can be changed here."
                )
        elif name not in FIELDS:
            return unknown_field(name)
    return str(error)


def axis_problem(config: ConfigDict, overrides: Iterable[str]) -> str | None:
    """The field whose value on the command line the grid would replace, in one line, or None."""
    axes = dict.fromkeys(flatten(config.get("grid", {})), "grid.{}")
    if config.get("seeds"):
        axes["seed"] = "seeds"
    for name in overrides:
        if name in axes:
            where = axes[name].format(name)
            return (
                f"--config.{name} would do nothing: the grid sets {name}; say --config.{where} "
                "with a tuple of values, such as (1,)."
            )
    return None


def field_help() -> str:
    """A line for each field: its default and what it means."""
    return "\n".join(
        f"  --config.{name}={field.shown_default}: {field.meaning}"
        for name, field in FIELDS.items()
    )
