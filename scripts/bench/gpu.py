"""Measures training on an accelerator: a bare JAX loop, `kresume train`, and PyTorch, one after the other.

    python scripts/bench/gpu.py            # ResNet-50 at 224 pixels in bfloat16; about ten minutes on one GPU
    python scripts/bench/gpu.py --small    # a small network at 32 pixels: shows on a processor that the script works

All train the same kind of network with AdamW on batches of the same size, each in a process of its own. The bare loop calls
Keras's jitted training step on batches that are on the device: nothing is read, nothing is counted. `kresume train` reads
JPEGs through its cache, scores, counts and takes snapshots; its speed is that of the last epoch. PyTorch runs with
channels-last, autocast to bfloat16 and `torch.compile` on a batch that is on the device. To reach: 0.97 of the bare loop
and 1.0 of PyTorch. The share of the peak is that of the bare loop, from the operations that XLA counts.

Further figures of an accelerator: `restart.py --backend jax --programs` (the start of a continued run), `snapshot.py` (the
stall per snapshot), `kill.py --backend jax` (equal bytes).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pairs
from PIL import Image

CLASSES = 10
PEAKS = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12, "V100": 125e12, "A10": 125e12,
    "TPU v5 lite": 197e12, "TPU v4": 275e12, "TPU v6 lite": 918e12,
}  # fmt: skip
"""Operations a second in 16 bits, without sparsity, from the makers' data sheets, by a part of the device's name."""


def sizes(small: bool) -> tuple[str, int, int, int]:
    """Returns the model, its image size, the batch size, and the steps that are measured."""
    return ("convnet", 32, 16, 20) if small else ("applications:ResNet50", 224, 128, 100)


def bare(small: bool) -> dict[str, object]:
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
    step = jax.jit(model.train_step, donate_argnums=0).lower(state, batches[0]).compile()
    for index in range(4):
        _, state = step(state, batches[index])
    jax.block_until_ready(state)
    start = time.perf_counter()
    for index in range(steps):
        _, state = step(state, batches[index % 4])
    jax.block_until_ready(state)
    seconds = time.perf_counter() - start
    costs = step.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    return {
        "speed": steps * batch / seconds,
        "device": jax.devices()[0].device_kind,
        "flops": float(costs.get("flops", 0.0)) * steps / seconds,
    }


def trained(small: bool) -> dict[str, object]:
    """Measures `kresume train` on JPEGs: images per second in its last epoch."""
    spec, size, batch, steps = sizes(small)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        for label in range(CLASSES):
            (folder / "data" / str(label)).mkdir(parents=True)
            for index in range(steps * batch // CLASSES // 2):
                picture = np.kron(rng.integers(0, 255, (size // 8, size // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
                Image.fromarray(picture).save(folder / "data" / str(label) / f"{index}.jpg")
        out = folder / "run"
        command = [sys.executable, "-m", "kresume", "train", "--data", folder / "data", "--out", out, "--model", spec]
        command += ["--image-size", size, "--batch-size", batch, "--epochs", 3, "--val-split", 0, "--no-trial"]
        command += [] if small else ["--precision", "mixed_bfloat16"]
        pairs.run(command, {"KERAS_BACKEND": "jax", "KRESUME_CACHE": str(folder / "cache")})
        line = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
        return {"speed": line["images_per_second"]}


def torched(small: bool) -> dict[str, object]:
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


WAYS = {"bare": bare, "trained": trained, "torched": torched}


def apart(way: str, small: bool) -> dict[str, Any]:
    """Runs a way in a process of its own, so that none holds the memory of the accelerator for the next."""
    pairs.note(f"{way} ...")
    command = [sys.executable, __file__, "--way", way, *(["--small"] if small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the table."""
    made = pairs.parser(__doc__)
    made.add_argument("--small", action="store_true", help="a small network, for a processor")
    made.add_argument("--way", choices=list(WAYS), help="measure one way and print it as JSON")
    asked = pairs.parse(made)
    if asked.way:
        print(json.dumps(WAYS[asked.way](asked.small)))
        return
    busy = pairs.Busy()
    busy.wait(asked.wait)
    found = {way: apart(way, asked.small) for way in WAYS}
    spec, size, batch, _ = sizes(asked.small)
    alone, device = float(found["bare"]["speed"]), str(found["bare"]["device"])
    rows = [["a bare JAX loop, data on the device", f"{alone:,.0f}", "1"]]
    torch = "PyTorch, another small network" if asked.small else "PyTorch, channels-last, bfloat16, compiled"
    names = {"trained": "kresume train, from its cache", "torched": torch}
    rows += [
        [name, f"{found[way]['speed']:,.0f}", f"{float(found[way]['speed']) / alone:.2f}"]
        for way, name in names.items()
        if found[way]
    ]
    columns = [f"{spec} at {size}, batches of {batch}, on {device}", "images/s", "of the bare loop"]
    pairs.table(columns, rows, busy)
    peak = next((value for name, value in PEAKS.items() if name in device), None)
    if peak and found["bare"]["flops"]:
        print(
            f"\nThe bare loop reaches {float(found['bare']['flops']) / peak:.0%} of the {peak / 1e12:.0f} TFLOP/s of {device}."
        )


if __name__ == "__main__":
    main()
