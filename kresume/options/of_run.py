"""Lists the options of the run directory and the machine."""

from __future__ import annotations

from typing import Literal

from kresume.options.about import AT_LEAST_0, AT_LEAST_1, FOLDER_OR_SERVER, LOCAL, Options, option_of

OUTPUT, GATES, MACHINE = "The run", "Gates", "Machine"


class RunOptions(Options):
    """Where the run is kept, and what computes it."""

    out: str | None = option_of(
        "The run directory, also at gs:// or s3://. Default: runs/<n>-<name>. Given alone, continues that run.",
        OUTPUT,
        daily=True,
        metavar="DIR",
    )
    overwrite: bool | None = option_of(
        "Move what is at --out aside and start again; an interrupted run that this same command began is continued.",
        OUTPUT,
        may_differ=True,
    )
    without: tuple[str, ...] | None = option_of(
        "Do not take over this option of the parent run: --without patience. Repeatable.", OUTPUT, metavar="NAME"
    )
    snapshot_every: str | None = option_of(
        "How often to take a snapshot: steps (200), epochs (2epochs) or minutes (10min). Default {default}.",
        OUTPUT,
        metavar="N",
        inherited=True,
        may_differ=True,
    )
    keep: int | None = option_of(
        "How many snapshots to keep. Default {default}.",
        OUTPUT,
        metavar="N",
        range=AT_LEAST_1,
        inherited=True,
        may_differ=True,
    )
    tensorboard: bool | None = option_of(
        "Write curves and sample pictures for TensorBoard into the run: tensorboard --logdir runs. Default {default}.",
        OUTPUT,
        inherited=True,
        may_differ=True,
    )
    profile: bool | None = option_of(
        "Trace a few steps, after the first ones, for TensorBoard's profile page, into the run. Default {default}.",
        OUTPUT,
        may_differ=True,
    )
    trial: bool | None = option_of(
        "Measure a few steps before the first one, to say how long the run takes; the model is put back to the bit. Default "
        "{default}.",
        OUTPUT,
        inherited=True,
        may_differ=True,
    )
    mlflow: str | None = option_of(
        "Record the scores in MLflow, too (extra mlflow): in the folder mlruns, or in another one or on a server with "
        "--mlflow=FOLDER or --mlflow=http://HOST:PORT. A child run does the same; --mlflow=off ends it.",
        OUTPUT,
        metavar="[=URI]",
        range=FOLDER_OR_SERVER,
        inherited=True,
        may_differ=True,
        bare=True,
    )
    take_over: bool | None = option_of(
        "Continue a run that another machine holds, without waiting until that machine is silent.",
        OUTPUT,
        may_differ=True,
    )
    require: tuple[str, ...] | None = option_of(
        'Condition on the scores, "old.accuracy>=0.93" for example. The result is an epoch that meets every gate; if none '
        "does, the run is rejected, exit 3. Repeatable.",
        GATES,
        metavar="EXPR",
        inherited=True,
    )
    max_forgetting: float | None = option_of(
        "By how many points the accuracy on old validation images may be below the parent's.",
        GATES,
        metavar="POINTS",
        range=AT_LEAST_0,
        inherited=True,
    )
    max_class_drop: float | None = option_of(
        "By how many points the recall of any class may be below the parent's.",
        GATES,
        metavar="POINTS",
        range=AT_LEAST_0,
        inherited=True,
    )
    backend: Literal["tensorflow", "jax"] | None = option_of(
        "Default: KERAS_BACKEND, else jax with an accelerator and tensorflow on a CPU, where it is several times faster.",
        MACHINE,
        daily=True,
        inherited=True,
        may_differ=True,
    )
    device: Literal["auto", "cpu", "gpu", "tpu"] | None = option_of("Default {default}.", MACHINE, may_differ=True)
    devices: int | None = option_of(
        "How many devices share each batch, through JAX. Default: as many of those here as divide the batch size.",
        MACHINE,
        metavar="N",
        range=AT_LEAST_1,
        may_differ=True,
    )
    coordinator: str | None = option_of(
        "Train on several hosts: the address of process 0, node1:12345 for example. The same command, with its own "
        "--process-id, runs on each. SLURM, Open MPI and TPU pods on GKE need none of the three; auto asks JAX to find the "
        "others.",
        MACHINE,
        metavar="HOST:PORT",
        may_differ=True,
    )
    num_processes: int | None = option_of(
        "How many processes train together. 1 trains alone, whatever started this process.",
        MACHINE,
        metavar="N",
        range=AT_LEAST_1,
        may_differ=True,
    )
    process_id: int | None = option_of(
        "Which of them this is, from 0; 0 decides and writes.",
        MACHINE,
        metavar="I",
        range=AT_LEAST_0,
        may_differ=True,
    )
    cache: str | None = option_of(
        "Where decoded pictures are kept: auto ($KRESUME_CACHE, else ~/.cache/kresume), off, or a folder. Default {default}.",
        MACHINE,
        metavar="DIR",
        range=LOCAL,
        inherited=True,
        may_differ=True,
    )
    cache_limit: str | None = option_of(
        "Largest size of the cache, 500MB or 50GB for example; pictures that were unused for longest are removed first. Kept "
        "for later commands. Default {default}.",
        MACHINE,
        metavar="SIZE",
        inherited=True,
        may_differ=True,
    )
    exact: Literal["on", "off"] | None = option_of(
        "on requests deterministic kernels of an accelerator; a CPU repeats without it. Default {default}.",
        MACHINE,
        inherited=True,
    )
