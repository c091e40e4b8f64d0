"""Builds a model from a preset of keras-hub, and a checkpoint whose layers are keras-hub's.

    model, said = from_preset("resnet_50_imagenet", num_classes=5, image_size=None)
    model = on_its_own(model)      # of a restored checkpoint: takes pictures as they are, without its preprocessor

A preset is a name (`resnet_50_imagenet`), an address (`hf://…`, `kaggle://…`) or a folder that `save_to_preset` wrote.
keras-hub (https://keras.io/keras_hub/) is not TensorFlow Hub.
"""

from __future__ import annotations

import difflib
import importlib
import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from kresume.backend.keras_settings import channels_last
from kresume.checkpoints.hub_classes import INSTALL, PACKAGE, is_hubs, is_installed, needs_hub
from kresume.errors import MissingPackage, ModelError
from kresume.models.hub_graph import converter_size, fixed_size, hidden_layers, holds_hub, on_pictures
from kresume.models.new_head import head_on
from kresume.models.own_code import last_line
from kresume.options.resolve import parse_image_size
from kresume.options.settings import PRETRAINED_IMAGE_SIZE
from kresume.spelling import option

HUB = "hub:"
LONGEST = 200
"""Most characters of keras-hub's own message that are shown."""


@channels_last()
def from_preset(
    preset: str, num_classes: int, image_size: tuple[int, int] | None, *, weights: bool = True
) -> tuple[keras.Model, str]:
    """Builds a preset's network with its preprocessing and a new head.

    Args:
        preset: a name or an address that keras-hub knows, or a folder that `save_to_preset` wrote.
        num_classes: outputs of the new head.
        image_size: `(height, width)`; None for the preset's own, else 224 pixels.
        weights: False for initial weights.

    Returns:
        `(model, one line on the weights)`. The model expects 0-255 and its variables below the head are the preset's; where
        the preset holds no preprocessing, it expects the pixels that the backbone does.

    Raises:
        MissingPackage: keras-hub is not installed.
        ModelError: there is no such preset, it cannot be fetched, or it is no image classifier's.
    """
    classifier, has_head = _load(preset, num_classes, weights)
    given = option("model", f"{HUB}{preset}")
    try:
        fixed = fixed_size(classifier)
        size = image_size or converter_size(classifier) or fixed or parse_image_size(PRETRAINED_IMAGE_SIZE)
        model, left_out = _with_new_head(classifier, size, num_classes, hidden=has_head)
    except (ModelError, ValueError) as error:
        raise ModelError(f"{given}: {last_line(error)}") from error
    count, name = len(classifier.backbone.weights), type(classifier.backbone).__name__
    said = [f"{count:,} weights of {preset} ({name})" if weights else f"{name} with initial weights"]
    if has_head and weights:
        layers = f", and so are the layers before it that take larger pictures ({left_out})" if left_out else ""
        said.append(f"its head of {classifier.num_classes:,} classes is left out{layers}")
    if fixed is not None and size != fixed and model.get_layer(classifier.backbone.name).input_shape[1:3] == fixed:
        said.append("{}x{} pixels are resized to the {}x{} that it takes".format(*size, *fixed))
    if getattr(classifier.preprocessor, "image_converter", None) is None:
        said.append("it holds no preprocessing")
    if holds_hub(model):
        said.append("model.keras holds layers of keras-hub, and loads where it is installed")
    return model, "; ".join(said)


def _with_new_head(
    classifier: Any, size: tuple[int, int], num_classes: int, *, hidden: bool
) -> tuple[keras.Model, str]:
    """Puts a new head on a classifier's features.

    Returns:
        `(model, names of trained layers of the old head that do not fit this size)`.
    """
    name = classifier.backbone.name.removesuffix("_backbone")

    def built(*, hidden: bool) -> keras.Model:
        return on_pictures(classifier, size, lambda features: head_on(features, num_classes), hidden=hidden, name=name)

    try:
        return built(hidden=hidden), ""
    except ValueError:
        if not hidden:
            raise
    return built(hidden=False), ", ".join(hidden_layers(classifier))


def _load(preset: str, num_classes: int, weights: bool) -> tuple[Any, bool]:
    """Loads a preset's image classifier.

    Returns:
        `(classifier, True if the preset has a trained head)`; otherwise the head has initial weights.

    Raises:
        MissingPackage, ModelError: see `from_preset`.
    """
    hub = _package(option("model", f"{HUB}{preset}"))

    def load(**more: Any) -> Any:
        return hub.models.ImageClassifier.from_preset(preset, load_weights=weights, **more)

    try:
        for trained, more in ((True, {}), (False, {"num_classes": num_classes})):
            try:
                if not trained or _has_head(preset):
                    return load(**more), trained
            except FileNotFoundError:
                continue  # a backbone may have been saved without preprocessing
            except TypeError as error:
                if "num_classes" not in str(error):  # a backbone has no number of classes
                    raise
        return load(num_classes=num_classes, preprocessor=None), False
    except Exception as error:  # requests, kagglehub and huggingface-hub raise errors of their own
        raise ModelError(_why_not(hub, preset, error)) from error


def _has_head(preset: str) -> bool:
    """Returns False if a preset describes its head without weights; keras-hub would make random ones."""
    from keras_hub.src.utils.preset_utils import TASK_CONFIG_FILE, TASK_WEIGHTS_FILE, check_file_exists

    return bool(check_file_exists(preset, TASK_WEIGHTS_FILE) or not check_file_exists(preset, TASK_CONFIG_FILE))


def _why_not(hub: Any, preset: str, error: Exception) -> str:
    """Says why a preset cannot be loaded, and what to do."""
    said, because = f"{option('model', f'{HUB}{preset}')}: keras-hub", textwrap.shorten(last_line(error), LONGEST)
    known = hub.models.ImageClassifier.presets
    address = known[preset].get("kaggle_handle", "") if preset in known else preset
    scheme, _, path = address.rpartition("://")
    if Path(preset).exists():
        return f"{said} cannot load this folder ({because}); `save_to_preset` of an image classifier or a backbone writes one"
    if scheme in {"", "http", "https"}:
        near = difflib.get_close_matches(preset, known, 3)
        names = f"did you mean {', '.join(near)}? " if near else ""
        return (
            f"{said} has no image classifier of this name, and there is no such folder: {names}Give a name of "
            "https://keras.io/keras_hub/presets/, hf://USER/NAME, kaggle://USER/MODEL/keras/NAME, or a folder that "
            "`save_to_preset` wrote (models of TensorFlow Hub are others)"
        )
    page, cache = {
        "kaggle": (f"https://www.kaggle.com/models/{path}", _kaggle_cache()),
        "hf": (f"https://huggingface.co/{path}", _hf_cache()),
    }.get(scheme, (address, ""))
    copy = f", or copy {cache} from a machine that has loaded it" if cache else ""
    return (
        f"{said} looked for {address} and could not fetch it ({because}): is there a network? Download {page} where "
        f"there is one and give the folder, {option('model', f'{HUB}FOLDER')}{copy}"
    )


def _kaggle_cache() -> str:
    return os.environ.get("KAGGLEHUB_CACHE") or str(Path.home() / ".cache" / "kagglehub")


def _hf_cache() -> str:
    home = os.environ.get("HF_HOME") or str(Path.home() / ".cache" / "huggingface")
    return os.environ.get("HF_HUB_CACHE") or str(Path(home) / "hub")


def _package(what: str) -> Any:
    """Imports keras-hub.

    Raises:
        MissingPackage: it is not installed.
    """
    if not is_installed():
        raise MissingPackage(f"{what} needs keras-hub: {INSTALL}")
    return importlib.import_module(PACKAGE)


def require_for(config: Mapping[str, Any], holder: str) -> None:
    """Imports keras-hub if an architecture holds its classes.

    Args:
        config: result of `keras.saving.serialize_keras_object(model)`.
        holder: where it comes from, for the message.

    Raises:
        MissingPackage: it is not installed.
    """
    if needs_hub(config):
        _package(f"the architecture in {holder} holds classes of keras-hub, and")


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Returns True for the configuration of a task of keras-hub, which compiles itself when it is built."""
    return is_hubs(config) and str(config["class_name"]).endswith("ImageClassifier")


def on_its_own(model: keras.Model) -> keras.Model:
    """Makes the preprocessing of a keras-hub classifier part of the model.

    Such a classifier preprocesses in `fit` and `predict`, but not when it is called. The variables are shared. Any other
    model is returned unchanged.

    Args:
        model: restored.

    Raises:
        ModelError: its preprocessing cannot be expressed in layers.
    """
    if type(model).__module__.partition(".")[0] != PACKAGE:
        return model
    if not isinstance(model, _package(model.name).models.ImageClassifier):
        return model
    try:
        size = converter_size(model) or fixed_size(model) or (None, None)
        return on_pictures(model, size)
    except (ModelError, ValueError) as error:
        raise ModelError(
            f"{model.name}, an image classifier of keras-hub, cannot be used: {last_line(error)}"
        ) from error
