"""The reference page of the config, made from the table of fields.

python -m cka_sr_jax.training.reference > docs/config.md
"""

from __future__ import annotations

from cka_sr_jax.report.markdown import markdown_table
from cka_sr_jax.training.field import Field
from cka_sr_jax.training.fields import FIELDS, GROUPS
from cka_sr_jax.training.methods import METHOD_NAMES, takers

INTRODUCTION = """\
# Every field of a config

A config is a Python file in `configs/` with a function `get_config` that changes what it needs of
`default_config()`. On the command line `--config.FIELD=VALUE` changes a field once more:

```sh
python launch.py --config=configs/quickstart/digits.py --config.sparsity.density=0.1
```

**When** something happens is a share of the run, from 0 to 1: the share s stands for step
round(s * steps). **How often** it happens is in steps. So a config keeps its meaning when the run
gets longer. A mistake in a field is answered with one sentence before any data is read.

A tuple is quoted: `--config.optimizer.decay_at="(0.5, 0.75)"`. A field whose default is `none` may
be unset again: `--config.sparsity.update_every=none`.

This page is made from `cka_sr_jax/training/fields.py`:
`python -m cka_sr_jax.training.reference > docs/config.md`.
"""

SPARSITY = """\
`sparsity.rule` names the method. The options below whose default is `none` belong to some methods,
each of which has a default of its own; setting an option that the method lacks is an error.
"""


def render() -> str:
    """The page, in Markdown."""
    sections = [_section(group, title) for group, title in GROUPS.items()]
    return "\n".join([INTRODUCTION, *sections])


def _section(group: str, title: str) -> str:
    names = [name for name in FIELDS if (name.split(".")[0] if "." in name else "") == group]
    columns = ["Field", "Default", "Takes", "Meaning"]
    if group == "sparsity":
        columns.append("Methods")
    rows = [_row(name, FIELDS[name])[: len(columns)] for name in names]
    text = f"{SPARSITY}\n" if group == "sparsity" else ""
    return f"## {title}\n\n{text}{markdown_table(columns, rows, 'l' * len(columns))}\n"


def _row(name: str, field: Field) -> list[str]:
    takes = field.expected + (", or none" if field.default is None else "")
    needs = f" Needs {field.needs}." if field.needs else ""
    default = f"`{field.shown_default}`" if field.shown_default else "empty"
    cells = [f"`{name}`", default, takes, field.meaning + needs, _methods(name)]
    return [cell.replace("|", r"\|") for cell in cells]


def _methods(name: str) -> str:
    """The methods that take an option of `sparsity`."""
    option = name.split(".")[-1]
    names = takers("end_step" if option == "end" else option)
    if not names or len(names) == len(METHOD_NAMES):
        return "all"
    others = [method for method in METHOD_NAMES if method not in names]
    return f"all but {', '.join(others)}" if len(others) < 4 else ", ".join(names)


if __name__ == "__main__":
    print(render(), end="")
