"""Where a prepared TFDS set lies: data_dir/name/version or data_dir/name/configuration/version."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

INFO_FILE = "dataset_info.json"


def find_prepared(name: str, directory: str | os.PathLike[str]) -> Path:
    """The folder of the newest version of a set: it holds `dataset_info.json`.

    Raises:
      ValueError: as `load_tfds`, where no such folder is there; it says how to prepare the set.
    """
    if not re.fullmatch(r"\w+(/[\w+-][\w.+-]*)?", name):
        raise ValueError(
            f"data.name is {name!r}; expected 'digits', or a TFDS set as 'set' or "
            "'set/configuration' (the newest version is taken)."
        )
    if not os.fspath(directory):
        raise ValueError(
            f"data.dir is empty; expected the folder that holds the TFDS set {name!r} (only "
            f"'digits' needs none), so set it, or {_how_to_prepare(name, 'FOLDER')}."
        )
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise ValueError(
            f"data.dir is {str(root)!r}, which is not a folder; expected the one that holds the "
            f"TFDS set {name!r}, so correct it, or {_how_to_prepare(name, str(root))}."
        )
    if versions := _versions(root / name):
        return versions[-1]
    configurations = _configurations(root / name)
    if len(configurations) > 1:
        raise ValueError(
            f"data.name is {name!r}, a set prepared in several configurations; expected one of "
            f"{', '.join(repr(f'{name}/{c.name}') for c in configurations)}."
        )
    if configurations:
        return _versions(configurations[0])[-1]
    raise ValueError(
        f"There is no TFDS set {name!r} in {str(root)!r} ({_what_is_there(name, root)}); correct "
        f"data.name or data.dir, or {_how_to_prepare(name, str(root))}."
    )


def _versions(folder: Path) -> list[Path]:
    """The folder's prepared versions (1.0.0, ..., 3.0.2, ..., 10.0.0), oldest first."""
    found = [path.parent for path in folder.glob(f"*/{INFO_FILE}")]
    versions = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return sorted(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def _configurations(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if _versions(path))


def _what_is_there(name: str, root: Path) -> str:
    sets = sorted(p.name for p in root.glob("*") if _versions(p) or _configurations(p))
    if not sets:
        return "it holds no prepared set at all"
    nearest = difflib.get_close_matches(name, sets, n=1)
    meant = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"it holds {', '.join(sets)}{meant}"


def _how_to_prepare(name: str, directory: str) -> str:
    return (
        "prepare it where there is a network: pip install 'cka_sr_jax[tfds-prepare]', then python "
        f'-c "import tensorflow_datasets as tfds; tfds.builder({name!r}, data_dir={directory!r}, '
        "file_format='array_record').download_and_prepare()\""
    )
