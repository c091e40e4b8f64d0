"""Decides how a command starts: a new run, or the continuation of an interrupted one.

Running the same command again is all that a user does to continue.

start = start_or_continue(config)
start.run          # the interrupted run to continue, or None
start.path         # the path of the run, existing or new
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kresume import runs
from kresume.backend import selection
from kresume.checkpoints.run import find_run
from kresume.class_renames import in_options, read_renames
from kresume.errors import ConfigMismatch, RunError, UsageError
from kresume.options.given import code_of, given, same_config, spelled_out, to_train
from kresume.options.lookup import INHERITED, MAY_DIFFER, flag_of
from kresume.options.resolve import left_out
from kresume.options.settings import EXTEND_FACTOR, settings_of
from kresume.options.table import TrainConfig
from kresume.reporter import Reporter
from kresume.spelling import option
from kresume.staging.fetch import here

RUNS = "runs"
OF_OLD_CLASSES = frozenset({"monitor", "require", "max_forgetting", "max_class_drop", "mix", "replay", "loss"})
"""Options of a parent run that its child with a new head does not inherit."""
GENERIC_NAMES = frozenset({"old", "new", "data", "images", "train", "training", "dataset", "inbox", "pictures", "."})


@dataclass(frozen=True)
class Start:
    """How a command starts.

    Attributes:
        path: the run directory.
        run: the interrupted run to continue, None for a new one.
        config: the options that apply. For a continuation: the run's own, with the options that may differ taken from
            the command.
        given: the options as the command gave them, recorded for later comparisons.
        aside: True if `path` exists and is to be moved aside (`--overwrite`).
    """

    path: Path
    run: runs.Run | None
    config: TrainConfig
    given: TrainConfig
    aside: bool = False


def start_or_continue(config: TrainConfig) -> Start:
    """Finds the run to continue or the path of a new one, in this order.

    1. `--overwrite`: the content of `--out` is moved aside and a new run starts there, unless this same command started
       the run in `--out`; then rule 2 applies.
    2. `--out` holds an interrupted run of the same options, or no option but `--out` was given: that run continues.
    3. `--out` holds nothing: a new run starts there.
    4. No `--out`: the newest interrupted run of the same options under `runs/` continues.
    5. Otherwise a new run starts at `runs/<n>-<name>`.

    Raises:
        UsageError: `--from X --out X`, or nothing to `--watch`.
        ConfigMismatch: `--out` holds a run of other options.
        RunError: `--out` holds a finished run, or something that is not a run.
    """
    start = _open(config)
    held = start.config
    if config.watch and not (held.data or held.add or held.val):
        raise UsageError(
            f"{option('watch', True)} looks for new images in the folders of {option('data')}, "
            f"{option('add')} and {option('val')}: give "
            "one of them"
        )
    return start


def select_backend(config: TrainConfig, backend: str | None, batch_size: int, reporter: Reporter) -> None:
    """Selects the backend and the devices of a training.

    Args:
        config: its options.
        backend: which backend; None for the default one.
        batch_size: images per batch, which the devices share.
        reporter: told what takes long, and how devices share a batch.

    Raises:
        UsageError: there is no such backend or device.
    """
    exact = settings_of(config).exact == "on"
    with selection.loading(reporter):
        selection.select(backend, config.device, config.devices, batch_size, exact=exact, say=reporter.say)


def _open(config: TrainConfig) -> Start:
    if config.out is not None:
        return _open_given(config, Path(here(config.out)))
    listed = runs.list_runs(RUNS)
    unknown = next((each for each in listed.unreadable if not each.has_result), None)
    if unknown is not None:
        raise RunError(
            f"{unknown.reason}, move {unknown.path} elsewhere, or give {option('out', f'{RUNS}/NAME')}: it may be the run that "
            "this command continues"
        )
    for run in runs.unfinished(listed.runs):
        before = TrainConfig(**run.record.given)
        if config.overwrite and not before.overwrite:
            continue  # the command requests a new run, once
        if not same_config(before.model_copy(update={"out": None}), config):
            return continue_run(run, config)
    return Start(runs.next_path(RUNS, _name(config)), None, _inherited(config), config)


def _open_given(config: TrainConfig, path: Path) -> Start:
    if config.from_ is not None and path.resolve() == Path(here(config.from_)).resolve():
        raise UsageError(
            f"{option('from', config.from_)} and {option('out', config.out)}: a child run cannot replace its "
            f"parent. Continue an interrupted run with `{to_train(out=str(path))}`; to extend it, leave "
            f"{option('out')} out or give another folder"
        )
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        if _only_out(config):
            raise UsageError(
                f"{option('out', config.out)}: there is no run to continue, and no {option('data')} to start one"
            )
        return Start(path, None, _inherited(config), config)
    if config.overwrite and not _begun_by(path, config):
        return Start(path, None, _inherited(config), config, aside=True)
    if not runs.is_run(path):
        what = (
            "is a file" if path.is_file() else f"holds {', '.join(sorted(child.name for child in path.iterdir())[:3])}"
        )
        raise RunError(
            f"{option('out', config.out)} {what}, which is not a run: give a folder that is empty or not there yet, or "
            f"{option('overwrite', True)} "
            "to move it aside"
        )
    run = runs.open_run(path)
    if not _only_out(config):
        before = TrainConfig(**run.record.given)
        differing = same_config(before.model_copy(update={"out": config.out}), config)
        if differing:
            raise ConfigMismatch(_mismatch(run, config, differing))
    if run.finished:
        raise RunError(
            f"{path} is finished ({run.status}, step {run.result_step():,}). To continue from it, extend it: "
            f"`{to_train(from_=str(run.path), add=('MORE_IMAGES',))}`"
        )
    return continue_run(run, config)


def _begun_by(path: Path, config: TrainConfig) -> bool:
    """Returns True if the same `--overwrite` command started this interrupted run, so it continues."""
    if not runs.is_run(path) or (run := runs.open_run(path)).finished:
        return False
    asked = run.record.given
    before = TrainConfig(**asked).model_copy(update={"out": config.out})
    return bool(asked.get("overwrite")) and not same_config(before, config)


def _only_out(config: TrainConfig) -> bool:
    asked = {name for name, value in given(config).items() if value is not False}
    return not (asked - {"out"} - MAY_DIFFER)


def continue_run(run: runs.Run, config: TrainConfig) -> Start:
    """Returns the continuation of a run, with the options of this command that may differ.

    Args:
        run: unfinished.
        config: the options of this command.
    """
    free = {name: value for name, value in given(config).items() if name in MAY_DIFFER}
    # A run may come from anywhere: only this command can say that its code is trusted.
    held = TrainConfig(**{**run.record.options, "trust": None})
    if "remap" in free:  # beside those of lists, which the run was begun with
        free["remap"] = tuple(dict.fromkeys([*(held.remap or ()), *free["remap"]]))
    return Start(run.path, run, held.model_copy(update={**free, "out": config.out or str(run.path)}), config)


def _mismatch(run: runs.Run, config: TrainConfig, differing: list[tuple[str, object, object]]) -> str:
    rows = "; ".join(f"{_named(name)}: {_shown(before)} -> {_shown(now)}" for name, before, now in differing)
    state = "a finished" if run.finished else "an interrupted"
    go_on = "" if run.finished else f"continue it unchanged with `{to_train(out=str(run.path))}`, or "
    return (
        f"{run.path} is {state} run with other options ({rows}): {go_on}start a new run from it with "
        f"`{_extended(run, config, {name for name, _, _ in differing})}`"
    )


def _named(name: str) -> str:
    return option(flag_of(name)[2:]).removesuffix("=")


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(str(item) for item in value)
    return "not given" if value is None else str(value)


def _extended(run: runs.Run, config: TrainConfig, differing: set[str]) -> str:
    """Returns the command that goes on from a run in a new one, with the options of this command."""
    changes: dict[str, object] = {"from_": str(run.path), "out": None, "overwrite": None}
    # The run remembers its images: the same sources again would hold nothing new.
    changes |= dict.fromkeys({"data", "add", "val"} - differing)
    own = config.lr is None and config.lr_scale is None and config.lr_schedule is None
    if run.finished and own and not differing & {"data", "add"}:  # more images warm the rate up again by themselves
        changes["lr_scale"] = EXTEND_FACTOR  # its own rate has come down
    return spelled_out(config.model_copy(update=changes))


def _name(config: TrainConfig) -> str:
    """Returns the folder name without number: the parent run's, else from the first specific source."""
    if config.from_ is not None:
        path = Path(here(config.from_))
        own = runs.list_runs(path).runs[-1:] if path.is_dir() and not runs.is_run(path) else ()
        for candidate in (*(run.path for run in own), path, path.parent):
            if runs.is_run(candidate):
                return runs.without_number(candidate.name)
    for source in (*(config.data or ()), *(config.add or ())):
        for candidate in (Path(source).resolve(), Path(source).resolve().parent):
            if candidate.name and candidate.name.lower() not in GENERIC_NAMES:
                return runs.without_number(candidate.name)
    return "run"


def _inherited(config: TrainConfig) -> TrainConfig:
    """Returns the options of a new run: the given ones, else the parent run's."""
    if config.from_ is None:
        return config
    run = find_run(config.from_)
    if run is None:
        if config.without:
            raise UsageError(
                f"{option('without', config.without[0])}: {config.from_} is not a run, and has no options to take over"
            )
        return config
    own = given(config)
    passed = INHERITED - set(own) - left_out(config)
    if {"mix", "replay"} & set(own):  # both set the number of old images in an epoch
        passed -= {"mix", "replay"}
    before = {name: value for name, value in run.record.options.items() if name in passed}
    before = in_options(before, read_renames(config.rename))
    if config.val and not run.record.options.get("val"):  # whose images validate, in place of a share of the new ones
        before.pop("val_split", None)
    if config.new_head:  # these are about the parent's classes and images
        before = {name: value for name, value in before.items() if name not in OF_OLD_CLASSES}
    if before.get("loss") not in {None, run.record.loss.kind}:
        del before["loss"]  # the run has grown, and its loss with it
    if "imports" in passed:
        # The parent's layers need the user's own code.
        before["imports"] = code_of(run.record.options) or None
    return TrainConfig(**{**config.model_dump(exclude_none=True), **before})
