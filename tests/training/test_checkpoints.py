"""Checkpoints: what is refused."""

import numpy as np
import pytest

from cka_sr_jax.training import Checkpoints


def test_checkpoints_refuse_other_shapes(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": np.zeros((2, 3), np.float32), "mask": np.ones(3, bool)})
    checkpoints.close()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match="does not fit this run: 'mask' is"):
        checkpoints.restore({"w": np.zeros((2, 3), np.float32), "mask": np.ones(4, bool)})
    with pytest.raises(ValueError, match="only the checkpoint has 'mask'"):
        checkpoints.restore({"w": np.zeros((2, 3), np.float32)})
    checkpoints.close()
