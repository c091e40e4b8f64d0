"""Trains as one of several processes on loopback; see `test_several_hosts.py`.

python tests/helpers/one_of_several.py PORT COUNT INDEX KILLED_AT ARGUMENTS       # as JSON; KILLED_AT 0 kills nobody
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a fork puts the repository last

from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training.loop import callbacks
from kresume.training.resume import train


def main(port: int, count: int, index: int, killed_at: int, arguments: dict) -> None:
    """Trains; kills this process after a step by SIGKILL."""
    step_done = callbacks.Keeper.on_train_batch_end

    def killed(keeper, batch, logs=None):
        step_done(keeper, batch, logs)
        if keeper.progress.step == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks.Keeper.on_train_batch_end = killed
    group = {"coordinator": f"127.0.0.1:{port}", "num_processes": count, "process_id": index}
    result = train(from_arguments(None, {**arguments, **group}), Reporter())
    sys.exit(result.exit_code)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:5]), json.loads(sys.argv[5]))
