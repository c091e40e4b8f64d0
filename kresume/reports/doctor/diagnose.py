"""Says what this machine has, what is missing, and whether pictures come as fast as it trains.

print(diagnose(Reporter()))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kresume.reporter import Reporter
from kresume.reports.doctor.findings import NAMES, Finding, find
from kresume.reports.doctor.machine import Machine, Seen, ask, busy_share, look, missing
from kresume.reports.doctor.probe import BATCH, PHOTO, SIDE
from kresume.staging.usage import usage

SECONDS: Mapping[str, float] = {"tensorflow": 90, "jax": 90, "feeding": 120, "training": 240}
"""How long a probe may take: importing a framework from a network drive, or compiling for a TPU, takes a minute."""

MEASURED = {"feeding": "measuring how fast pictures come", "training": "measuring how fast it trains"}
MUCH_DISK = 2**30
BUSY = 0.25
"""Share of the processors in use from which on the measured speeds are not those of a quiet machine."""


@dataclass(frozen=True)
class Diagnosis:
    """The findings of `kresume doctor`.

    Attributes:
        machine: its facts.
        seen: what each backend answered.
        speeds: pictures a second: `decoded`, `cached`, `trained`; empty if they were not measured.
        problems: what to mend.
        notes: what is good to know.
    """

    machine: Machine
    seen: Mapping[str, Seen]
    speeds: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[Finding, ...] = ()
    notes: tuple[Finding, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Returns the JSON form."""
        facts = asdict(self.machine)
        kept = {name: facts[name] for name in ("python", "cpu", "threads", "accelerator", "backend", "packages")}
        return {
            **kept,
            "machine": {name: value for name, value in facts.items() if name not in kept},
            "missing": list(missing(self.machine.packages)),
            "devices": {name: list(answer.facts.get("devices", ())) for name, answer in self.seen.items()},
            "errors": {name: answer.error for name, answer in self.seen.items() if answer.error},
            "images_per_second": dict(self.speeds),
            "problems": [asdict(each) for each in self.problems],
            "notes": [asdict(each) for each in self.notes],
            "advice": [each.fix for each in self.problems if each.fix],
        }

    def __str__(self) -> str:
        lines = [*_machine_lines(self.machine, self.seen), *_speed_lines(self.speeds)]
        found = [("problem", each) for each in self.problems] + [("note", each) for each in self.notes]
        for kind, each in found:
            lines += ["", f"{kind + ':':<12}{each.what}"]
            lines += [f"{'  mend it:':<12}{each.fix}"] if each.fix else []
        if not self.problems:
            lines += [
                "",
                "ready:      nothing is missing; `kresume train --data FOLDER` trains here, `kresume demo` tries everything",
            ]
        return "\n".join(lines)


def diagnose(reporter: Reporter, *, measure: bool = True) -> Diagnosis:
    """Examines this machine.

    Args:
        reporter: shown what is being done.
        measure: False measures no speed, which takes half a minute.
    """
    machine = look()
    seen = {}
    for name in NAMES:
        if name in machine.packages:
            with reporter.waiting(f"asking {NAMES[name]} for its devices", now=True):
                seen[name] = ask(name, SECONDS[name])
    problems, notes = find(machine, seen)
    notes += _stages()
    speeds: dict[str, Any] = {}
    if measure and len(seen) == len(NAMES) and not any(answer.error for answer in seen.values()):
        notes += _busy()
        for name, text in MEASURED.items():
            with reporter.waiting(text, now=True):
                answer = ask(name, SECONDS[name])
            speeds |= answer.facts
            if answer.error:
                problems.append(Finding(f"{text} failed: {answer.error}", "kresume doctor --no-measure leaves it out"))
    return Diagnosis(machine, seen, speeds, tuple(problems), tuple(notes))


def _stages() -> list[Finding]:
    """Returns a note if the local copies of runs in buckets and on drives take much of the disk."""
    found = usage()
    if found.bytes < MUCH_DISK:
        return []
    kept = f" but {', '.join(found.unwritten)}, not all of which is at its address yet" if found.unwritten else ""
    return [
        Finding(
            f"local copies of runs in buckets and on drives take {found.bytes / 2**30:,.1f} GB in {found.folder}",
            f"remove any of them{kept}: what is needed again is fetched",
        )
    ]


def _busy() -> list[Finding]:
    """Returns a note if other processes use much of the processors; kresume waits meanwhile."""
    share = busy_share(0.5)
    if share < BUSY:
        return []
    return [Finding(f"other processes use {share:.0%} of the processors: the speeds are lower than on a quiet machine")]


def _machine_lines(machine: Machine, seen: Mapping[str, Seen]) -> list[str]:
    memory = f", {machine.memory / 2**30:.0f} GB of memory" if machine.memory else ""
    threads = f"{machine.threads} thread{'s' * (machine.threads != 1)}"
    colab = ", Google Colab" if machine.colab else ""
    own = machine.packages.get("kresume", "(from its sources)")
    lines = [
        f"kresume     {own}, Python {machine.python}, {machine.system}{colab}",
        f"processor   {machine.cpu}, {threads}{memory}",
    ]
    for gpu in machine.gpus:
        lines.append(
            f"gpu         {gpu.name}, {gpu.memory / 2**30:.0f} GB ({gpu.used / 2**30:.1f} GB in use), driver {gpu.driver}"
        )
    if machine.accelerator == "tpu":
        lines.append("tpu         there")
    for name in NAMES:
        version = machine.packages.get(name, "not installed")
        answer = seen.get(name)
        finds = "" if answer is None or answer.error else f", finds {', '.join(answer.facts['devices']) or 'nothing'}"
        lines.append(f"{name:<12}{version}{finds}")
    others = ", ".join(f"{name} {version}" for name, version in machine.packages.items() if name in {"keras", "numpy"})
    return [
        *lines,
        f"{'with':<12}{others}",
        f"{'--backend':<12}{machine.backend} unless you give another ({_why(machine)})",
    ]


def _why(machine: Machine) -> str:
    if machine.keras_backend:
        return "KERAS_BACKEND says so"
    if machine.backend == "jax":
        return f"JAX can use the {(machine.accelerator or '').upper()}"
    return "on a processor TensorFlow trains several times faster than JAX"


def _speed_lines(speeds: Mapping[str, Any]) -> list[str]:
    if not speeds:
        return []
    height, width = PHOTO
    lines = [""]
    if "decoded" in speeds:
        lines += [
            f"decodes     {_count(speeds['decoded'])} images/s: JPEGs of {width}x{height} to {SIDE}x{SIDE}, in "
            f"{speeds['threads']} threads; each picture once, before its first epoch",
            f"feeds       {_count(speeds['cached'])} images/s: decoded pictures from the cache, augmented",
        ]
    if "trained" in speeds:
        lines.append(
            f"trains      {_count(speeds['trained'])} images/s: a small network (convnet) at {SIDE}x{SIDE}, batches of "
            f"{BATCH}, {speeds['backend']} on {speeds['device']}"
        )
    if {"cached", "trained"} <= speeds.keys():
        lines.append(f"so          {_verdict(speeds['cached'] / speeds['trained'])}")
    return lines


def _verdict(factor: float) -> str:
    """Says in words what limits training.

    Args:
        factor: how many times faster pictures come than they are trained on.
    """
    if factor >= 1.2:
        times = f"{factor:.0f}" if factor >= 10 else f"{factor:.1f}"
        return f"pictures come {times} times as fast as this network trains on them: the training never waits for them"
    return (
        f"this network would wait for its pictures, which come at {factor:.0%} of its speed: a larger network waits less, "
        "a smaller --image-size or more processor cores feed it faster"
    )


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
