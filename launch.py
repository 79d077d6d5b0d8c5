"""Train a sparse network.

  python launch.py --config=configs/quickstart/digits.py --config.FIELD=VALUE

The fields, with what they mean, are in docs/config.md. `cka-sr train` does the same.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def interrupt(*_: Any) -> None:
    """What Ctrl-C does while modules load."""
    sys.stderr.write("Interrupted; the same command goes on from what was saved.\n")
    sys.stderr.flush()
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)

from cka_sr_jax.launch import main  # noqa: E402 - Ctrl-C is one line here too

if __name__ == "__main__":
    main()
