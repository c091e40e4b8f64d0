"""Translates options of timm, Hugging Face, YOLO and Keras scripts into those of kresume."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

NEIGHBOURS: Mapping[str, str] = {
    "--resume": "an interrupted run continues by the same command; a checkpoint with more images is --from PATH",
    "--resume-from-checkpoint": "that is --from PATH; an interrupted run continues by the same command",
    "--initial-checkpoint": "that is --from PATH",
    "--pretrained": "that is --from PATH",
    "--ckpt": "that is --from PATH",
    "--checkpoint": "that is --from PATH",
    "--lr0": "that is --lr F",
    "--learning-rate": "that is --lr F",
    "--imgsz": "that is --image-size N",
    "--img-size": "that is --image-size N",
    "--input-size": "that is --image-size N",
    "--batch": "that is --batch-size N",
    "--output-dir": "that is --out DIR",
    "--output": "that is --out DIR",
    "--project": "that is --out DIR",
    "--name": "that is --out DIR",
    "--run-name": "that is --out DIR",
    "--exist-ok": "that is --overwrite; an interrupted run continues by the same command",
    "--plan": "kresume plan prints the plan alone",
    "--dry-run": "kresume plan prints the plan alone",
    "--model-ema": "that is --ema 0.999",
    "--warmup-epochs": "that is --warmup-steps N",
    "--sched": "that is --lr-schedule NAME",
    "--opt": "that is --optimizer NAME",
    "--data-dir": "that is --data PATH",
    "--checkpoint-hist": "that is --keep N",
    "--save-total-limit": "that is --keep N",
    "--recovery-interval": "that is --snapshot-every N",
    "--save-steps": "that is --snapshot-every N",
    "--num-epochs": "that is --epochs N",
    "--num-train-epochs": "that is --epochs N",
    "--workers": "reading is as parallel as the machine allows, without an option",
    "--amp": "that is --precision mixed_bfloat16",
    "--distillation-alpha": "that is --distill F",
    "--wise-ft": "that is --average F",
}
"""Options elsewhere, and what to use here."""
CLOSE = 0.75
"""How similar an unknown option is at least to the one that is suggested (`difflib`): `--name` is no slip for `--amp`."""


def nearest(option: str, known: Sequence[str]) -> str | None:
    """Suggests an option for an unknown one; None if nothing is similar.

    Args:
        option: the unknown option, with its two dashes.
        known: the options that exist, with their dashes.
    """
    name = option.replace("_", "-")
    if name in NEIGHBOURS:
        return NEIGHBOURS[name]
    near = difflib.get_close_matches(name, [*known, *NEIGHBOURS], 1, CLOSE)
    if not near:
        return None
    meant = f"did you mean {near[0]}?"
    return f"{meant} {NEIGHBOURS[near[0]]}" if near[0] in NEIGHBOURS else meant
