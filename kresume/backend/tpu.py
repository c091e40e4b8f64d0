"""Trains on a TPU under TensorFlow, through `tf.distribute.TPUStrategy` on one of its cores.

    use_tpu()           # before Keras makes a variable
    on_tpu()       # True from then on

TensorFlow trains on one device here: on several, each would have its own statistics in BatchNormalization, which is another
training. JAX uses all cores. This has not run on a TPU: the tests train through the same code on a strategy of one CPU, to
equal bytes.
"""

from __future__ import annotations

import os
import sys

from kresume.errors import UsageError
from kresume.spelling import option


def use_tpu() -> None:
    """Places all models of this thread on one core of the TPU; does nothing if they are there already.

    Source: https://www.tensorflow.org/guide/tpu.

    Raises:
        UsageError: TensorFlow finds no TPU, or cannot use it.
    """
    import tensorflow as tf

    if on_tpu():
        return
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=os.environ.get("TPU_NAME", "local"))
        tf.config.experimental_connect_to_cluster(resolver)
        topology = tf.tpu.experimental.initialize_tpu_system(resolver)
        one_core = tf.tpu.experimental.DeviceAssignment.build(topology, num_replicas=1)
        strategy = tf.distribute.TPUStrategy(resolver, experimental_device_assignment=one_core)
    except (ImportError, OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(
            f"{option('device', 'tpu')}: TensorFlow cannot use a TPU here ({reason[:300]}); `kresume doctor` shows what each "
            f"backend finds, and {option('backend', 'jax')} uses all cores of a TPU"
        ) from error
    tf.distribute.experimental_set_strategy(strategy)


def on_tpu() -> bool:
    """Returns True if TensorFlow trains on a TPU in this thread."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None or not tensorflow.distribute.has_strategy():
        return False
    return isinstance(tensorflow.distribute.get_strategy(), tensorflow.distribute.TPUStrategy)
