"""Makes TensorFlow build graphs with less work: without operations' Python stacks, Grappler and tf.data's optimiser.

Tests build thousands of small graphs and run each for some steps. An operation's stack is for error messages.
"""

import os
import sys

ASKED = "KRESUME_TEST_GRAPPLER"
"""The environment variable that, if it is set, lets Grappler optimise the graphs of every test."""
_OPTIMIZED = [True]


def build_quickly(*, optimized: bool = False) -> None:
    """Imports TensorFlow and makes graphs of this process cheap.

    Args:
        optimized: lets Grappler optimise them all the same. It may change a result's last bit.
    """
    import tensorflow as tf
    from tensorflow.python.data.ops.dataset_ops import DatasetV2
    from tensorflow.python.framework import ops
    from tensorflow.python.util import tf_stack

    # Not one stack for all: TensorFlow moves its frames into the operation, and reads those of the next one all the same.
    tf_stack.extract_stack = lambda stacklevel=1: None
    ops.pywrap_tf_session.TF_SetOpStackTrace = lambda operation, stack: None
    asked = optimized or ASKED in os.environ
    if asked != _OPTIMIZED[0]:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": not asked})
        _OPTIMIZED[:] = [asked]
    plain = tf.data.Options()  # makes an iterator in 5 ms instead of 50
    if not asked:
        plain.autotune.enabled = plain.experimental_optimization.apply_default_optimizations = False

    def with_plain_options(data):
        # A strategy's iterator that is destroyed while it reads ends the process by SIGSEGV, unless it reads from a prefetch,
        # which one of the optimisations adds. Only such iterators tell a number of devices.
        shared = data._options_attr.experimental_distribute.num_devices is not None
        return data if shared else data.with_options(plain)

    DatasetV2._apply_debug_options = with_plain_options  # each iterator calls it


def optimized() -> bool:
    """Returns whether Grappler optimises the graphs of this process."""
    return _OPTIMIZED[0]


def is_used() -> bool:
    """Returns whether a test that was collected will import TensorFlow, if it has not yet."""
    return bool({"keras", "tensorflow", "kresume.training.resume"} & sys.modules.keys())
