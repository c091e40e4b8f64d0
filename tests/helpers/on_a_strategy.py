"""Trains the same runs without a strategy of TensorFlow and on one, in one process; see `test_several_devices.py`.

python -m tests.helpers.on_a_strategy FOLDER         # FOLDER holds `old/` and `new/`

No TPU is at hand: the calls that find one are replaced, and a `MirroredStrategy` of one CPU stands for a `TPUStrategy` of one
core. Its variables are distributed ones as well.
"""

import os
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fork puts the repository last

import pytest
import tensorflow as tf

from kresume.checkpoints import snapshot
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import TINY, make_interrupted, run_training
from tests.helpers.several_devices import EXTENSION, MODEL


class Found:
    """Stands for the TPU that TensorFlow finds."""

    @staticmethod
    def build(topology, num_replicas):
        """Returns the number of cores to use, in place of an assignment."""
        assert topology == "topology"
        return num_replicas


class OneCore(tf.distribute.MirroredStrategy):
    """Stands for a strategy of one core: one CPU."""

    def __init__(self, resolver, experimental_device_assignment):
        assert experimental_device_assignment == 1
        super().__init__(["/cpu:0"])


def main(folder: Path) -> None:
    """Trains, extends and continues without a strategy, then on one."""
    os.chdir(folder)
    Path("model.py").write_text(MODEL)
    write_pictures(Path("more"), 5, 700, ("apple",))
    prune, snapshot.prune_snapshots = snapshot.prune_snapshots, lambda *_: None
    for device in ("cpu", "tpu"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", lambda tpu: tpu)
            patch.setattr(tf.config, "experimental_connect_to_cluster", lambda resolver: None)
            patch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda resolver: "topology")
            patch.setattr(tf.tpu.experimental, "DeviceAssignment", Found)
            patch.setattr(tf.distribute, "TPUStrategy", OneCore)
            first = {"data": ["old"], "model": "model.py:build", **TINY, "batch_size": 8, "trial": False}
            run_training(out=f"on-{device}", device=device, snapshot_every="1", **first)
            assert tf.distribute.has_strategy() == (device == "tpu")
            if device == "tpu":
                shutil.copytree("on-tpu", "killed-on-tpu")
                make_interrupted(Path("killed-on-tpu"), "step-00000002")
                run_training(out="killed-on-tpu", device=device)
            run_training("on-cpu", out=f"extended-on-{device}", device=device, trial=False, **EXTENSION)
            grown = {"add": ["more"], "grow": True, "average": "0.5", "precision": "mixed_float16", "epochs": 1}
            run_training(f"extended-on-{device}", out=f"grown-on-{device}", device=device, **grown)
    snapshot.prune_snapshots = prune


if __name__ == "__main__":
    main(Path(sys.argv[1]))
