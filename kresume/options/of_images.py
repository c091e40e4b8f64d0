"""Lists the options that say where training starts and on which images."""

from __future__ import annotations

from typing import Literal

from kresume.options.about import ABOVE_0, AT_LEAST_0, BELOW_1, SHARE, Options, option_of

START, IMAGES = "Where to start", "Images"


class ImageOptions(Options):
    """The checkpoint and the images."""

    from_: str | None = option_of(
        "Checkpoint or run to extend: a run, RUN@step, a folder of runs (the newest accepted one), .keras, .weights.h5, .h5 "
        "of Keras 2, a folder of BackupAndRestore, tf.train.Checkpoint, a SavedModel, a folder of Orbax, a PyTorch state "
        "dict; also at gs:// or s3://. Without it a new model is trained.",
        START,
        daily=True,
        metavar="PATH",
        flag="--from",
    )
    or_new: bool | None = option_of(
        "Start with initial weights if there is nothing at --from yet (for commands that run from the first day).",
        START,
    )
    partial: bool | None = option_of(
        "Continue although some variables could not be restored; they start fresh and are listed.", START
    )
    data: tuple[str, ...] | None = option_of(
        "The old images: a folder with one folder per class, a CSV, JSON or Parquet list with path and label, a tar or zip "
        "archive, WebDataset shards, TFRecord, a manifest. Repeatable, kinds mix. A parent run remembers its own.",
        IMAGES,
        daily=True,
        metavar="PATH",
    )
    add: tuple[str, ...] | None = option_of(
        "The new images. Repeatable. Images that the parent has already are recognised by content and used once.",
        IMAGES,
        daily=True,
        metavar="PATH",
    )
    val: tuple[str, ...] | None = option_of(
        "Images to validate on, never trained on. Repeatable. Turns --val-split off unless that is given too.",
        IMAGES,
        daily=True,
        metavar="PATH",
    )
    val_split: float | None = option_of(
        "Share of the images new to this run that validate, chosen by content and recorded. Default: the parent's, else "
        "{default}.",
        IMAGES,
        metavar="F",
        range=BELOW_1,
        inherited=True,
    )
    val_like: str | None = option_of(
        "keras:F:SEED: validate on the images of --data that image_dataset_from_directory(validation_split=F, seed=SEED) "
        "held out.",
        IMAGES,
        metavar="keras:F:SEED",
    )
    feature: tuple[str, ...] | None = option_of(
        "Name of a TFRecord feature: encoded=NAME, label=NAME or text=NAME. Repeatable. Default: image/encoded, "
        "image/class/label, image/class/text.",
        IMAGES,
        metavar="ROLE=NAME",
        inherited=True,
    )
    new_only: bool | None = option_of(
        "Train on the images of --add alone, for a checkpoint that records none: it may forget what it knew.", IMAGES
    )
    distill: float | None = option_of(
        "Keep the answers near those of the checkpoint, which predicts every picture beside the run: adds F times their "
        "distance to the loss, 1.0 for example. For new images without the old ones, or with them.",
        IMAGES,
        metavar="F",
        range=ABOVE_0,
    )
    drop: str | None = option_of(
        "File with a path or a SHA-256 per line: images to remove from the manifest and the cache.",
        IMAGES,
        metavar="FILE",
    )
    remap: tuple[str, ...] | None = option_of(
        "Where remembered images, those of a list, or those of an interrupted run have moved: how their paths began before "
        "and begin now. Repeatable.",
        IMAGES,
        metavar="OLD=NEW",
        may_differ=True,
    )
    rename: tuple[str, ...] | None = option_of(
        "New name of a class: its output and its recorded images keep their place under the new name. Images in folders of "
        "either name are the class. Repeatable; two classes may swap their names.",
        IMAGES,
        metavar="OLD=NEW",
    )
    on_missing: Literal["error", "drop", "cache"] | None = option_of(
        "Remembered images whose files are gone: stop with an error, drop them, or train on them from the cache. Default "
        "{default}. An interrupted run stops only if all files of a source are gone.",
        IMAGES,
        may_differ=True,
    )
    on_conflict: Literal["quarantine", "old", "new"] | None = option_of(
        "One image under two labels: use neither, the label that was there first, or the new one. Default {default}.",
        IMAGES,
        inherited=True,
    )
    strict_images: bool | None = option_of("Stop with an error if a file cannot be used.", IMAGES, inherited=True)
    mix: str | None = option_of(
        "How an epoch mixes old and new images: concat (each image once), or shares OLD:NEW, 1:1 for example. Default "
        "{default}.",
        IMAGES,
        metavar="concat|OLD:NEW",
        inherited=True,
    )
    replay: float | None = option_of(
        "Share of the old images that each epoch uses, 0.25 for example; another part each time. Default: all.",
        IMAGES,
        metavar="F",
        range=SHARE,
        inherited=True,
    )
    balance: Literal["none", "class"] | None = option_of(
        "class gives every class the same share of an epoch. Default {default}; class in a run whose --grow adds classes.",
        IMAGES,
        inherited=True,
    )
    classes: str | None = option_of(
        "Names of the model's outputs in their order: a,b,c, quotes around names with commas, or a file: one name per line, "
        "`0 ROCK` lines of Teachable Machine, JSON (class_indices of Keras), CSV. Default: the parent's, else the sorted "
        "class folders.",
        IMAGES,
        metavar="FILE|a,b,c",
    )
    augment: Literal["none", "light", "strong"] | None = option_of(
        "light shifts; strong also mirrors, rotates, zooms and erases. Default {default}.", IMAGES, inherited=True
    )
    vary_interpolation: bool | None = option_of(
        "Choose at random for each image between --interpolation and that of Keras's own loader (bilinear), for a model that "
        "unknown loaders will feed. Decodes each image a second time. Default {default}.",
        IMAGES,
        inherited=True,
    )
    mixup: float | None = option_of(
        "MixUp's alpha, 0.2 for example. Default {default}.", IMAGES, metavar="F", range=AT_LEAST_0, inherited=True
    )
    cutmix: float | None = option_of(
        "Largest share of a picture that CutMix replaces by another, up to 1. Default {default}.",
        IMAGES,
        metavar="F",
        range=SHARE,
        inherited=True,
    )
    rand_augment: float | None = option_of(
        "RandAugment's strength from 0 to 1, two operations per image: slow on a CPU. Default {default}.",
        IMAGES,
        metavar="F",
        range=SHARE,
        inherited=True,
    )
    erase: float | None = option_of(
        "Share of the images in which a random rectangle is erased. Default {default}.",
        IMAGES,
        metavar="F",
        range=SHARE,
        inherited=True,
    )
