"""Writes the PyTorch goldens: state dicts in common forms, and PyTorch's next training steps.

Run as `python scripts/golden torch`; needs torch and safetensors.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from inputs import IMAGES, LABELS
from torch_models import MODELS

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9),
    "nesterov": lambda parameters: torch.optim.SGD(parameters, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, 3e-3),
    "amsgrad": lambda parameters: torch.optim.Adam(parameters, 3e-3, amsgrad=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 3e-3, weight_decay=0.05),
}


def _prefixed(prefix: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in weights.items()}


def _write(path: Path, form: str, model: Any, optimizer: Any) -> None:
    weights, state = model.state_dict(), optimizer.state_dict()
    if form == "seed":
        torch.save({"epoch": 3, "model_state_dict": weights, "optimizer_state_dict": state}, path)
    elif form == "parallel":  # DataParallel, in the format before PyTorch 1.6
        whole = {"epoch": 3, "state_dict": _prefixed("module.", weights), "optimizer": state}
        torch.save(whole, path, _use_new_zipfile_serialization=False)
    elif form == "compiled":
        torch.save({"model": _prefixed("_orig_mod.", weights), "optimizer": state, "best": np.float64(0.5)}, path)
    elif form == "bare":
        torch.save(weights, path)
    else:
        save_file({name: value.contiguous() for name, value in weights.items()}, path)


CASES = {
    "plain-adam.pth": ("plain", "adam", "seed"),
    "plain-nesterov.pth": ("plain", "nesterov", "parallel"),
    "residual-sgd.pt": ("residual", "sgd", "compiled"),
    "mobile-adamw.pth": ("mobile", "adamw", "seed"),
    "plain-amsgrad.pth": ("plain", "amsgrad", "seed"),
    "transformer-nesterov.pth": ("transformer", "nesterov", "seed"),
    "residual.pth": ("residual", "sgd", "bare"),
    "plain.safetensors": ("plain", "sgd", "safetensors"),
    "mobile.safetensors": ("mobile", "sgd", "safetensors"),
}


def write(root: Path) -> Path:
    """Writes every case below `root/torch-VERSION` and returns that folder."""
    folder = root / f"torch-{torch.__version__.partition('+')[0]}"
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.from_numpy(np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)))
    labels = torch.from_numpy(LABELS)
    expected = {}
    for name, (architecture, optimizer_name, form) in CASES.items():
        torch.manual_seed(1)
        model = MODELS[architecture]().train()
        optimizer = OPTIMIZERS[optimizer_name](model.parameters())

        def step(model: Any = model, optimizer: Any = optimizer) -> float:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        for _ in range(3):
            step()
        _write(folder / name, form, model, optimizer)
        model.eval()
        predictions = model(images).detach().numpy()
        model.train()
        expected[name] = {
            "model": architecture,
            "optimizer": optimizer_name if form not in {"bare", "safetensors"} else None,
            "predictions": predictions.tolist(),
            "next_losses": [step() for _ in range(3)],
        }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return folder
