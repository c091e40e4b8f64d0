"""Lists the options of the model: its architecture, its input, its loss."""

from __future__ import annotations

from typing import Literal

from kresume.options.about import LOCAL, Options, option_of
from kresume.values.decode_spec import Interpolation, Resize

MODEL = "Model"


class ModelOptions(Options):
    """The model."""

    model: str | None = option_of(
        "convnet, applications:NAME (of Keras), hub:PRESET (of keras-hub, which is not TensorFlow Hub: a preset's name or "
        "address, or a folder that save_to_preset wrote; with its weights), file.py:function, package.module:function, or a "
        ".json, .keras or .h5 file with an architecture. Default: the checkpoint's, else {default}.",
        MODEL,
        daily=True,
        metavar="SPEC",
        range=LOCAL,
    )
    map: str | None = option_of(
        "YAML file that says which array of a PyTorch state dict fills which variable; its entries win over matches by name, "
        "order and shape.",
        MODEL,
        metavar="FILE",
    )
    map_out: str | None = option_of(
        "Where to write the mapping of a PyTorch state dict, to correct it and give it back with --map.",
        MODEL,
        metavar="FILE",
        may_differ=True,
    )
    imports: tuple[str, ...] | None = option_of(
        "Python file that registers custom layers or losses with Keras. Repeatable.",
        MODEL,
        metavar="FILE",
        flag="--import",
        range=LOCAL,
        inherited=True,
        held=True,
        may_differ=True,
    )
    trust: bool | None = option_of(
        "The checkpoint is mine: run the code of its Lambda layers. Without it no code of a checkpoint is ever run.",
        MODEL,
        may_differ=True,
    )
    image_size: str | None = option_of(
        "Size of the pictures in pixels, N or HEIGHTxWIDTH. Default: the model's or the preset's, {default} for a new one, 224 "
        "with --weights.",
        MODEL,
        daily=True,
        metavar="N|HxW",
        inherited=True,
        held=True,
    )
    pixels: str | None = option_of(
        "The pixel values that the model expects: auto, 0-255, 0-1, -1-1, caffe, torch (Keras's own), bgr-0-255, bgr-0-1, "
        "bgr--1-1 (OpenCV), cifar10, mnist, 0-255-inverted, 0-1-inverted, -1-1-inverted (grey), mean=M,std=S[,bgr] with one "
        "number or one per channel, or FILE.py:FUNCTION. auto reads it from the first layers, or finds it by scoring the "
        "checkpoint on old images.",
        MODEL,
        metavar="NAME",
        range=LOCAL,
        inherited=True,
        held=True,
    )
    axes: str | None = option_of(
        "Order of height, width and channels in the model's input, where its shape does not say it: hwc, chw, hw, wh ... "
        "Default: what the shape says; for a row of numbers the order that fits the old images.",
        MODEL,
        metavar="ORDER",
        inherited=True,
        held=True,
    )
    resize: Resize | None = option_of(
        "How pictures are resized; keraspad pads as pad_to_aspect_ratio of image_dataset_from_directory does. Default: the "
        "parent's, else {default}.",
        MODEL,
        inherited=True,
        held=True,
    )
    interpolation: Interpolation | None = option_of(
        "How resizing samples pixels; image_dataset_from_directory uses bilinear, and its area is kerasarea here: it averages "
        "whole JPEGs, while area lets large ones shrink as they are decoded. Default: the parent's, else {default}.",
        MODEL,
        inherited=True,
        held=True,
    )
    loss: Literal["sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy"] | None = (
        option_of(
            "Default: the checkpoint's, else the one that fits the last activation.", MODEL, inherited=True, held=True
        )
    )
    metric: tuple[str, ...] | None = option_of(
        "A further Keras metric to log. Repeatable.", MODEL, metavar="NAME", inherited=True
    )
    weights: str | None = option_of(
        "Weights that a new applications:NAME starts from: imagenet, or a .weights.h5 or .h5 of that network, with or without "
        "its top. Its preprocessing becomes part of the model; the new head trains alone at first. random: initial weights, "
        "also for a hub:PRESET.",
        MODEL,
        daily=True,
        metavar="imagenet|FILE|random",
        range=LOCAL,
    )
    new_head: bool | None = option_of(
        "Replace the checkpoint's head by a new one for the classes of --data; the new head trains alone at first.",
        MODEL,
    )
    grow: bool | tuple[str, ...] | None = option_of(
        "Add class folders that the checkpoint does not know: outputs for them are added to its head, behind the old ones, "
        "whose weights are kept. --grow adds every one, --grow=rose,tulip these; another unknown folder stays an error.",
        MODEL,
        daily=True,
        metavar="[=a,b]",
        bare=True,
    )
    head: str | None = option_of(
        "Name of the layer that gives the outputs, if --grow does not find it.", MODEL, metavar="NAME"
    )
    new_rows: Literal["imprinted", "random"] | None = option_of(
        "How the weights of added outputs start: imprinted, from the mean features of their class, or random, small. Default "
        "{default}.",
        MODEL,
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] | None = option_of(
        "Arithmetic of the layers; variables stay float32. Default: the checkpoint's, float32 for a new model.",
        MODEL,
        inherited=True,
        held=True,
    )
