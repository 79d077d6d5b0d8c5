"""What stored runs say: tables, paired comparisons and figures.

Commands, each run as `python -m cka_sr_jax.analysis.NAME`:

  table         means and deviations of any figure, by fields of the config
  paired        differences between runs of the same seed, with confidence intervals
  figures       heat maps of CKA, curves of CKA over training, histograms of weights
  neighbor_cka  how similar each layer is to the next
  paper_tables  how the single runs of the paper's tables 2 and 5 scatter
  export        the tested weights of one run as a file for other programs
  runs          collects the runs of a grid in one JSON-lines file

In a notebook, `open_run("runs/first")` gives a finished run as an object.

Modules behind them: `run` is a finished run, `runs` reads and writes stored ones, `rows` has what a
table knows of a run, `comparison` has the statistics of paired differences, `commands` has what the
commands share.
"""

from cka_sr_jax.analysis.run import Run, open_run

__all__ = ["Run", "open_run"]
