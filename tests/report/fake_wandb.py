"""A module that stands in for wandb and keeps what it is given."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np


class FakeRun:
    """What `wandb.init` returns."""

    def __init__(self, options, *, offline, step):
        self.options, self.offline, self.step = options, offline, step
        self.url = None if offline else "https://wandb.test/run"
        self.dir = f"{options['dir']}/wandb/run/files"
        self.logged, self.summary, self.exit_code = {}, {}, None

    def log(self, values, step=None):
        assert self.exit_code is None, "logged to a run that has ended"
        self.logged.setdefault(step, {}).update(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


class FakeWandb(ModuleType):
    """Attributes: `runs` that were started; `network`; `step` from which a run is resumed."""

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="made up")
        self.runs, self.network, self.step = [], True, 0
        self.Settings = SimpleNamespace
        self.Image = lambda data: ("image", data if isinstance(data, str) else np.shape(data))
        self.Histogram = lambda np_histogram: ("histogram", int(np_histogram[0].sum()))

    def setup(self, settings):
        assert settings.silent

    def init(self, *, mode="online", settings, **options):
        if mode == "online" and not self.network:
            raise RuntimeError("No API key\nconfigured.")
        self.runs.append(FakeRun(options, offline=mode == "offline", step=self.step))
        return self.runs[-1]


def install(monkeypatch):
    """The fake, in the place of wandb."""
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return wandb
