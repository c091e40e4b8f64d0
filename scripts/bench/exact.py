"""Tests on an accelerator what `--exact on` promises: equal bytes when a run is repeated, and when it is killed and continued.

    python scripts/bench/exact.py                  # the small network in bfloat16; about four minutes on one GPU
    python scripts/bench/exact.py --model applications:ResNet50 --image-size 96        # about fifteen

With `--exact off` and `--exact on` a training runs three times: whole, whole again, and killed twice by SIGKILL after a
snapshot and continued by the same command. The table says which of them end with the bytes of the first: all arrays of the
result (weights, optimizer, random state) and the metrics of each epoch. What it costs, `gpu.py` measures.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu
import kill
import pairs

EPOCHS, EACH = 6, 64


def killed(command: list[str], environment: dict[str, str], snapshots: Path) -> None:
    """Starts the training three times; kills the first two after a snapshot that they wrote."""
    for _ in range(2):
        before = len(list(snapshots.glob("step-*")))
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(snapshots.glob("step-*"))) == before:
            time.sleep(0.02)
        if process.poll() is not None:
            sys.exit("the training ended before it was killed")
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True, capture_output=True)


def main() -> None:
    """Prints the table."""
    made = pairs.parser(__doc__)
    made.add_argument("--model", default="convnet")
    made.add_argument("--image-size", type=int, default=64)
    made.add_argument("--precision", default="mixed_bfloat16")
    asked = pairs.parse(made)
    busy, rows = pairs.Busy(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gpu.write_pictures(folder / "data", asked.image_size, EACH)
        environment = {**os.environ, "KERAS_BACKEND": "jax", "KRESUME_CACHE": str(folder / "cache")}
        for exact in ("off", "on"):
            base = [sys.executable, "-m", "kresume", "train", "--data", folder / "data", "--epochs", EPOCHS]
            base += ["--model", asked.model, "--image-size", asked.image_size, "--precision", asked.precision]
            base += ["--augment", "strong", "--ema", 0.9, "--batch-size", 40, "--exact", exact]
            base += ["--no-trial", "--snapshot-every", 25, "--keep", 100]
            results = {}
            for way in ("whole", "again", "killed"):
                out = folder / f"{exact}-{way}"
                command = [str(word) for word in [*base, "--out", out]]
                start = time.perf_counter()
                if way == "killed":
                    killed(command, environment, out / "snapshots")
                else:
                    subprocess.run(command, env=environment, check=True, capture_output=True)
                results[way] = kill.result(out)
                equal = "equal" if results[way] == results["whole"] else "other"
                pairs.note(f"--exact {exact}, {way}: {equal} bytes, {time.perf_counter() - start:.0f} s")
            device = json.loads((folder / f"{exact}-whole" / "run.json").read_text())["fingerprint"]["device"]
            found = ["equal" if results[way] == results["whole"] else "other" for way in ("again", "killed")]
            rows.append([f"--exact {exact}", device, *found])
    columns = [f"{asked.model} at {asked.image_size}, {asked.precision}", "device", "bytes when repeated"]
    pairs.table([*columns, "bytes when killed twice and continued"], rows, busy)


if __name__ == "__main__":
    main()
