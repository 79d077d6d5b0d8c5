"""Train a sparse network: python launch.py --config=configs/digits.py --config.FIELD=VALUE.

The fields, with what they mean, are in cka_sr_jax/training/config.py.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "digits.py"
FLAGS = flags.FLAGS
flags.DEFINE_string(
    "workdir", None, "Where the run is kept; by default runs/ and the config file's name."
)
config_flags.DEFINE_config_file(
    "config", None, "The experiment's file, by default configs/digits.py; --config.FIELD=VALUE too."
)


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake in it ends the program with one line and status 2."""
    if not any(re.match(r"--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={DEFAULT_CONFIG}", *argv[1:]]
    try:
        rest = FLAGS(argv)
        FLAGS.config.to_dict()  # a config file that could not be loaded says so only here
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        fail(_explain(error, argv))
    if len(rest) > 1:
        fail(f"Unexpected argument {rest[1]!r}: flags are --config, --config.FIELD and --workdir.")
    return rest


def main(argv: list[str]) -> None:
    """Run the experiment."""
    logging.set_verbosity(logging.ERROR)  # Orbax logs two dozen lines for each checkpoint
    from cka_sr_jax.experiments import layer_sparsity  # after the flags: importing jax takes time
    from cka_sr_jax.training import ConfigError, run

    name = Path(config_flags.get_config_filename(FLAGS["config"])).stem
    start = layer_sparsity.run if FLAGS.config.layer_sparsity.strengths else run
    try:
        start(FLAGS.config, FLAGS.workdir or Path("runs") / name)
    except ConfigError as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End with one line on stderr and status 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def _explain(error: Exception, argv: list[str]) -> str:
    """What is wrong, naming the config field where it is one that does not exist."""
    from cka_sr_jax._errors import unknown
    from cka_sr_jax.training.config import default_config, flatten

    fields = flatten(default_config())
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in fields and not match[1].startswith("model.options."):
            return unknown("config field", match[1], fields)
    missing = re.search(r"'(\w+)\\?'", str(error))
    if isinstance(error, AttributeError | KeyError) and missing:
        return f"The config file sets no field {missing[1]!r} under model.options."
    if isinstance(error, OSError):
        return f"The config file cannot be read: {str(error).splitlines()[-1].strip()}."
    return str(error)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own log lines
    app.run(main, flags_parser=parse_flags)
