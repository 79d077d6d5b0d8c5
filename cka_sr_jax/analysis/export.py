"""The tested weights of a finished run in one file, for other programs.

  cka-sr export runs/digits --to=sparse

--to says what is written: "safetensors", all weights with the masks; "sparse", the same with only
the kept weights; "jax", a program of jax.export that takes the data set's images, bytes
[b, h, w, c], and gives logits.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from cka_sr_jax.analysis.commands import error_line
from cka_sr_jax.analysis.run import open_run
from cka_sr_jax.data import load_dataset, normalize
from cka_sr_jax.export import export_inference, save_safetensors
from cka_sr_jax.training import load_variables, load_weights
from cka_sr_jax.training.build import image_statistics, model_of
from cka_sr_jax.training.config import with_defaults

# {--to: the file's name in the run's folder}
FILES = {
    "safetensors": "weights.safetensors",
    "sparse": "sparse.safetensors",
    "jax": "inference.jax",
}


def export_run(folder: str | Path, to: str, output: str | Path | None = None) -> Path:
    """Write the tested weights of the run in `folder`; returns the file.

    Args:
      to: a name in FILES.
      output: the file; None: the one in `folder` that FILES names. One that is there is replaced.

    Raises:
      ValueError: `folder` holds no finished run with weights, or its data are not there ("jax").
    """
    run = open_run(folder)
    if run.folder is None:
        raise ValueError(f"{run.name} holds no weights: name the run's folder instead.")
    variables, masks = load_weights(run.folder)
    path = run.folder / FILES[to] if output is None else Path(output)
    if to != "jax":
        save_safetensors(path, variables, masks, sparse=to == "sparse")
        return path
    config = _config_of(run.config)
    dataset = load_dataset(config.data)
    model, (mean, std) = model_of(config, dataset.num_classes), image_statistics(config, dataset)
    example = np.zeros((1, *dataset.train_images.shape[1:]), np.uint8)

    def apply(variables: Any, images: Any) -> Any:
        return model.apply(variables, normalize(images, mean, std), train=False)

    export_inference(apply, variables, example, path)
    return path


def _config_of(stored: Mapping[str, Any]) -> ConfigDict:
    """A run's stored config with all fields; JSON has lists where a model's options are tuples."""
    flat = {
        field: tuple(value) if isinstance(value, list) else value
        for field, value in with_defaults(dict(stored)).items()
    }
    config = ConfigDict(traverse_util.unflatten_dict(flat, sep="."))
    config.model.options = config.model.get("options", {})
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the file that the command line names, and print its size beside that of the weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="the folder of a finished run")
    parser.add_argument("--to", choices=FILES, default="safetensors", help="what to write")
    parser.add_argument("--output", help="the file; by default one in the run's folder")
    options = parser.parse_args(arguments)
    try:
        path = export_run(options.run, options.to, options.output)
        dense = sum(leaf.nbytes for leaf in jax.tree.leaves(load_variables(options.run)))
    except (ValueError, OSError) as error:
        sys.exit(error_line(error))
    except ModuleNotFoundError as error:  # of the extra `export`
        sys.exit(f"error: {error}")
    print(f"{path}: {path.stat().st_size:,} bytes; all weights take {dense:,} bytes.")


if __name__ == "__main__":
    main()
