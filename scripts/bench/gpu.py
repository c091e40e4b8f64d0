"""Measures training on an accelerator: a bare JAX loop, `kresume train`, and PyTorch, one after the other.

    python scripts/bench/gpu.py            # ResNet-50 at 224 pixels in bfloat16; about ten minutes on one GPU
    python scripts/bench/gpu.py --small    # a small network at 32 pixels: shows on a processor that the script works

All train the same kind of network with AdamW on batches of the same size, each in a process of its own. The bare loop calls
Keras's jitted training step on batches that are on the device: nothing is read, nothing is counted. `kresume train` reads
JPEGs through its cache, augments, scores, counts and takes snapshots; its speed is the median of its last epochs, those
after the third. PyTorch runs with channels-last, autocast to bfloat16 and `torch.compile` on a batch that is on the device.
To reach: 0.97 of the bare loop and 1.0 of PyTorch. The share of the peak is that of the bare loop, from the operations that
XLA counts.

Further figures of an accelerator: `exact.py` (equal bytes with `--exact on`), `restart.py --backend jax --programs` (the
start of a continued run), `snapshot.py` (the stall per snapshot).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pairs
from PIL import Image

CLASSES = 10
EPOCHS = 8
"""Epochs of `kresume train`, each half as many steps as the other ways take."""
PEAKS = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12, "V100": 125e12, "A10": 125e12,
    "TPU v5 lite": 197e12, "TPU v4": 275e12, "TPU v6 lite": 918e12,
}  # fmt: skip
"""Operations a second in 16 bits, without sparsity, from the makers' data sheets, by a part of the device's name."""


def sizes(small: bool) -> tuple[str, int, int, int]:
    """Returns the model, its image size, the batch size, and the steps that are measured."""
    return ("convnet", 32, 16, 20) if small else ("applications:ResNet50", 224, 128, 100)


def bare(small: bool, folder: Path) -> dict[str, object]:
    """Measures Keras's training step, jitted, on batches that are on the device."""
    os.environ["KERAS_BACKEND"] = "jax"
    from kresume.backend import selection

    selection.select("jax")
    import jax
    import keras

    from kresume.models.build import build_model

    spec, size, batch, steps = sizes(small)
    precision = "float32" if small else "mixed_bfloat16"
    keras.config.set_dtype_policy(precision)
    model = build_model(spec, state=None, num_classes=CLASSES, image_size=(size, size), precision=precision)
    model.compile(keras.optimizers.AdamW(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    rng = np.random.default_rng(0)
    batches = [
        jax.device_put(
            (rng.uniform(0, 255, (batch, size, size, 3)).astype(np.float32), rng.integers(0, CLASSES, batch))
        )
        for _ in range(4)
    ]
    model._symbolic_build(data_batch=batches[0])
    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([jax.numpy.array(variable.value) for variable in group] for group in groups)
    traced = jax.jit(model.train_step, donate_argnums=0).trace(state, batches[0])
    costs = traced.lower(lowering_platforms=("cpu",)).cost_analysis() or {}  # those of a GPU lack its library's kernels
    step = traced.lower().compile()
    for index in range(4):
        _, state = step(state, batches[index])
    jax.block_until_ready(state)
    start = time.perf_counter()
    for index in range(steps):
        _, state = step(state, batches[index % 4])
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    return {
        "speed": steps * batch / seconds,
        "device": jax.devices()[0].device_kind,
        "flops": float(costs.get("flops", 0.0)) * steps / seconds,
    }


def write_pictures(folder: Path, size: int, each: int) -> None:
    """Writes `each` JPEGs of each class, `size` pixels a side, all different."""

    def write(place: tuple[int, int]) -> None:
        label, index = place
        rng = np.random.default_rng(place)
        blocks = rng.integers(0, 255, (size // 8, size // 8, 3), np.uint8)
        Image.fromarray(blocks.repeat(8, 0).repeat(8, 1)).save(folder / str(label) / f"{index}.jpg")

    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
    with ThreadPoolExecutor() as threads:
        list(threads.map(write, [(label, index) for label in range(CLASSES) for index in range(each)]))


def trained(small: bool, folder: Path, *options: object) -> dict[str, object]:
    """Measures `kresume train` on JPEGs: images per second, and the share of the time that it waits for images."""
    spec, size, batch, _ = sizes(small)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name, "run")
        command = [sys.executable, "-m", "kresume", "train", "--data", folder / "data", "--out", out, "--model", spec]
        command += ["--image-size", size, "--batch-size", batch, "--epochs", EPOCHS, "--val-split", 0, "--no-trial"]
        command += ["--precision", "float32" if small else "mixed_bfloat16", *options]
        pairs.run(command, {"KERAS_BACKEND": "jax", "KRESUME_CACHE": str(folder / "cache")})
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][3:]
        return {
            name: statistics.median(line[field] or 0.0 for line in lines)
            for name, field in (("speed", "images_per_second"), ("waiting", "waiting_for_images"))
        }


def unaugmented(small: bool, folder: Path) -> dict[str, object]:
    """Measures `kresume train --augment none`."""
    return trained(small, folder, "--augment", "none")


def exact(small: bool, folder: Path) -> dict[str, object]:
    """Measures `kresume train --exact on`: what deterministic kernels cost."""
    return trained(small, folder, "--exact", "on")


def torched(small: bool, folder: Path) -> dict[str, object]:
    """Measures PyTorch on a batch that is on the device."""
    try:
        import torch
    except ImportError:
        return {}
    _, size, batch, steps = sizes(small)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = _residual(torch, (1, 1) if small else (3, 4, 6, 3)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    run = network if small else torch.compile(network)
    images = torch.rand(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(0, CLASSES, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=not small):
            loss = torch.nn.functional.cross_entropy(run(images), labels)
        loss.backward()
        optimizer.step()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(4):
        step()
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return {"speed": steps * batch / (time.perf_counter() - start)}


def _residual(torch: Any, blocks: tuple[int, ...]):
    """Builds a ResNet of bottleneck blocks, ResNet-50 for (3, 4, 6, 3) (He et al. 2015, arXiv:1512.03385)."""
    nn = torch.nn

    def convolution(before: int, after: int, side: int, stride: int = 1, relu: bool = True) -> list[object]:
        layers = [nn.Conv2d(before, after, side, stride, side // 2, bias=False), nn.BatchNorm2d(after)]
        return [*layers, nn.ReLU(inplace=True)] if relu else layers

    class Block(nn.Module):  # type: ignore[misc, name-defined]  # torch comes as an argument
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            after = 4 * width
            parts = convolution(before, width, 1) + convolution(width, width, 3, stride)
            self.body = nn.Sequential(*parts, *convolution(width, after, 1, relu=False))
            straight = before == after and stride == 1
            self.skip = nn.Identity() if straight else nn.Sequential(*convolution(before, after, 1, stride, relu=False))

        def forward(self, x):
            return torch.relu(self.body(x) + self.skip(x))

    layers, before = [*convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, count in enumerate(blocks):
        for number in range(count):
            layers.append(Block(before, 64 * 2**stage, 2 if stage and not number else 1))
            before = 256 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES))


WAYS = {"bare": bare, "trained": trained, "unaugmented": unaugmented, "exact": exact, "torched": torched}


def apart(way: str, small: bool, folder: Path) -> dict[str, Any]:
    """Runs a way in a process of its own, so that none holds the memory of the accelerator for the next."""
    pairs.note(f"{way} ...")
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder), *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    pairs.note(done.stdout.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    made = pairs.parser(__doc__)
    made.add_argument("--small", action="store_true", help="a small network, for a processor")
    made.add_argument("--way", choices=list(WAYS), help="measure one way and print it as JSON")
    made.add_argument("--folder", type=Path, help="holds the pictures and the cache, for --way")
    asked = pairs.parse(made)
    if asked.way:
        print(json.dumps(WAYS[asked.way](asked.small, asked.folder)))
        return
    busy = pairs.Busy()
    busy.wait(asked.wait)
    spec, size, batch, steps = sizes(asked.small)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "data", size, steps * batch // CLASSES // 2)
        found = {way: apart(way, asked.small, folder) for way in WAYS}
    alone, device = float(found["bare"]["speed"]), str(found["bare"]["device"])
    rows = [["a bare JAX loop, data on the device", f"{alone:,.0f}", "1", ""]]
    torch = "PyTorch, another small network" if asked.small else "PyTorch, channels-last, bfloat16, compiled"
    names = {
        "trained": "kresume train, from its cache, augmented",
        "unaugmented": "the same with --augment none",
        "exact": "the same as the first with --exact on",
        "torched": torch,
    }
    for way, name in names.items():
        if one := found[way]:
            waiting = f"{one['waiting']:.0%}" if "waiting" in one else ""
            rows.append([name, f"{one['speed']:,.0f}", f"{float(one['speed']) / alone:.2f}", waiting])
    columns = [f"{spec} at {size}, batches of {batch}, on {device}", "images/s", "of the bare loop", "waits for images"]
    pairs.table(columns, rows, busy)
    peak = next((value for name, value in PEAKS.items() if name in device), None)
    if peak and found["bare"]["flops"]:
        print(
            f"\nThe bare loop reaches {float(found['bare']['flops']) / peak:.0%} of the {peak / 1e12:.0f} TFLOP/s of {device}."
        )


if __name__ == "__main__":
    main()
