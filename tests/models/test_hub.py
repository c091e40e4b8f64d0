"""Tests `--model hub:PRESET`, and checkpoints that keras-hub's own classifiers wrote.

Presets are written with random weights by `save_to_preset`, and read by the code that reads those of Kaggle.
"""

import json
import zipfile

import keras
import numpy as np
import pytest

import kresume
from kresume.checkpoints.hub_classes import needs_hub
from kresume.checkpoints.inspect import describe
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import MissingPackage, ModelError, UsageError
from kresume.models import hub, hub_graph
from kresume.models.load import Subject, load
from kresume.models.pixels import read_convention
from kresume.options.resolve import from_arguments
from kresume.training.plan.parent import read_parent, restore_parent
from tests.helpers.backends import few_under_jax
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import kill_at_every_snapshot, run_training

keras_hub = pytest.importorskip("keras_hub")

CLASSES = 7
SCALE, OFFSET = [0.017, 0.0175, 0.0171], [-2.1, -2.0, -1.8]
RESNET = {
    "input_conv_filters": [64],
    "input_conv_kernel_sizes": [3],
    "stackwise_num_filters": [64, 8],
    "stackwise_num_blocks": [1, 1],
    "stackwise_num_strides": [1, 2],
    "block_type": "basic_block",
}
EFFICIENTNET = {
    "stackwise_kernel_sizes": [3, 3],
    "stackwise_num_repeats": [1, 2],
    "stackwise_input_filters": [8, 8],
    "stackwise_output_filters": [8, 8],
    "stackwise_expansion_ratios": [1, 4],
    "stackwise_strides": [1, 1],
    "stackwise_squeeze_and_excite_ratios": [0.0, 0.25],
    "width_coefficient": 0.3,
    "depth_coefficient": 1.0,
}
MOBILENET = {
    "stackwise_expansion": [[8, 16], [16]],
    "stackwise_num_blocks": [2, 1],
    "stackwise_num_filters": [[8, 8], [16]],
    "stackwise_kernel_size": [[3, 3], [5]],
    "stackwise_num_strides": [[2, 1], [1]],
    "stackwise_se_ratio": [[None, None], [0.25]],
    "stackwise_activation": [["relu", "relu"], ["hard_swish"]],
    "stackwise_padding": [[1, 1], [2]],
    "output_num_filters": 24,
    "input_num_filters": 8,
    "depthwise_filters": 8,
    "depthwise_stride": 2,
    "depthwise_residual": False,
    "squeeze_and_excite": 0.5,
    "last_layer_filter": 24,
}
CSPNET = {
    "stem_filters": 8,
    "stem_kernel_size": 3,
    "stem_strides": 1,
    "stackwise_depth": [1, 1],
    "stackwise_strides": [1, 2],
    "stackwise_num_filters": [8, 16],
    "stage_type": "dark",
    "block_type": "dark_block",
}
VIT = {
    "image_shape": (16, 16, 3),
    "patch_size": 8,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "mlp_dim": 8,
    "dropout_rate": 0.1,
}
DEIT = {name: value for name, value in VIT.items() if name != "mlp_dim"} | {"intermediate_dim": 8}
HGNET = {
    "depths": [1, 1],
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "stem_channels": [3, 8, 8],
    "hidden_act": "relu",
    "use_learnable_affine_block": True,
    "stackwise_stage_filters": [(8, 8, 8, 1, 1, 3), (8, 8, 16, 1, 1, 3)],
    "apply_downsample": [False, True],
    "use_lightweight_conv_block": [False, False],
}
MIT = {
    "layerwise_depths": [1, 1],
    "num_layers": 2,
    "layerwise_num_heads": [1, 2],
    "layerwise_sr_ratios": [2, 1],
    "max_drop_path_rate": 0.1,
    "layerwise_patch_sizes": [7, 3],
    "layerwise_strides": [4, 2],
    "image_shape": (16, 16, 3),
    "hidden_dims": [8, 16],
}
PLAIN = {
    "resnet": ("ResNet", RESNET, {}),
    "resnet-v2": ("ResNet", RESNET | {"use_pre_activation": True}, {}),
    "efficientnet": ("EfficientNet", EFFICIENTNET | {"stackwise_block_types": ["v1", "v1"]}, {}),
    "efficientnet-v2": ("EfficientNet", EFFICIENTNET | {"stackwise_block_types": ["fused", "unfused"]}, {}),
    "efficientnet-el": ("EfficientNet", EFFICIENTNET | {"stackwise_block_types": ["cba", "fused"]}, {}),
    "mobilenet": ("MobileNet", MOBILENET, {"num_features": 12}),
    "vgg": ("VGG", {"stackwise_num_repeats": [1], "stackwise_num_filters": [4]}, {"pooling_hidden_dim": 6}),
    "densenet": ("DenseNet", {"stackwise_num_repeats": [1, 2], "growth_rate": 4}, {}),
    "cspnet": ("CSPNet", CSPNET, {}),
    "xception": ("Xception", {"stackwise_conv_filters": [[4, 8], [8, 8]], "stackwise_pooling": [True, False]}, {}),
}
"""Families whose model holds Keras's own layers alone: family, arguments of the backbone, of the classifier."""
HUBS = {
    "vit": ("ViT", VIT, {"intermediate_dim": 6}),
    "deit": ("DeiT", DEIT, {}),
    "mit": ("MiT", MIT, {}),
    "hgnet": ("HGNetV2", HGNET, {}),
}
FAMILIES = PLAIN | HUBS


def value(variable):
    return np.array(keras.ops.convert_to_numpy(variable.value))


def answers(model, images):
    """Returns the outputs of a model, without compiling it."""
    return keras.ops.convert_to_numpy(model(images, training=False))


def pictures(size, count=2):
    return np.random.default_rng(3).integers(0, 256, (count, *size, 3)).astype("float32")


def randomise(model):
    """Gives each weight random values, as far as they make sense for its role."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        values = rng.normal(0, 0.2, variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path or "gamma" in variable.path else values)


def classifier_of(name, **converter):
    """Builds a small classifier of keras-hub with random weights and preprocessing of its own."""
    family, arguments, more = FAMILIES[name]
    kind = getattr(keras_hub.models, f"{family}ImageClassifier")
    size = arguments.get("image_shape", (16, 16, 3))[:2]
    options = {"image_size": size, "scale": SCALE, "offset": OFFSET} | converter
    preprocessor = kind.preprocessor_cls(image_converter=kind.preprocessor_cls.image_converter_cls(**options))
    backbone = getattr(keras_hub.models, f"{family}Backbone")(**arguments)
    model = kind(backbone=backbone, num_classes=CLASSES, preprocessor=preprocessor, **more)
    randomise(model)
    return model


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Returns the folder of a family's preset, written once."""
    written = {}

    def preset(name):
        if name not in written:
            written[name] = str(tmp_path_factory.mktemp("presets") / name)
            policy = keras.config.dtype_policy()  # of the test that asks first
            keras.config.set_dtype_policy("float32")
            classifier_of(name).save_to_preset(written[name])
            keras.config.set_dtype_policy(policy)
        return written[name]

    return preset


def backbone_of(model):
    return next(layer for layer in model.layers if isinstance(layer, keras.Model))


def same_as_keras_hub(preset, size):
    """Asserts that a model with the preset's own last weights answers as keras-hub's classifier, weights included."""
    own = keras_hub.models.ImageClassifier.from_preset(preset)
    model, said = hub.from_preset(preset, CLASSES, size)
    assert [value(each).tobytes() for each in backbone_of(model).weights] == [
        value(each).tobytes() for each in own.backbone.weights
    ]
    last = next(each for each in hub_graph.backwards(own) if each.weights)
    model.get_layer("head").set_weights(last.get_weights())
    images = pictures(model.input_shape[1:3])
    expected = keras.ops.softmax(own(own.preprocessor(images)))  # what its `predict` does; it gives logits
    np.testing.assert_allclose(answers(model, images), keras.ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-6)
    # A call that does not say `training` predicts, too: no preprocessing layer turns dropout on.
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(images)), answers(model, images))
    return model, said


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.sample("mobilenet", "resnet", "vit", "efficientnet-v2")
def test_a_preset_is_read_bit_for_bit_with_its_preprocessing(presets, name):
    """Every weight is the preset's, the answers are keras-hub's; where possible no class of keras-hub is left."""
    model, said = same_as_keras_hub(presets(name), None)
    assert model.input_shape == (None, 16, 16, 3)
    assert read_convention(model) == "0-255"
    assert f"its head of {CLASSES} classes is left out" in said
    config = keras.saving.serialize_keras_object(model)
    assert needs_hub(config) == (name in HUBS) == ("loads where it is installed" in said)
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    again.set_weights(model.get_weights())
    images = pictures((16, 16))
    np.testing.assert_array_equal(answers(again, images), answers(model, images))


@pytest.mark.parametrize("name", few_under_jax(["resnet", "mobilenet", "vit"], ["mobilenet"]))
def test_both_backends_read_a_preset(presets, name):
    """ResNet is a graph already, MobileNet's blocks are opened, ViT keeps keras-hub's layers."""
    same_as_keras_hub(presets(name), None)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", ["efficientnet-v2", "mobilenet"])
def test_an_opened_block_trains_as_the_block_does(presets, name):
    """In training mode the opened graph updates the same statistics by the same bytes; dropout is the only chance."""
    own = classifier_of(name)
    whole = hub_graph.on_pictures(classifier_of(name), (16, 16))
    for model in (own, whole):
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
    images = pictures((16, 16))
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(whole(images, training=True)),
        keras.ops.convert_to_numpy(own(own.preprocessor(images), training=True)),
    )
    statistics = [[value(each) for each in model.weights if "moving" in each.path] for model in (own, whole)]
    for one, other in zip(*statistics, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.one_backend(trains=True)
def test_another_size_is_taken_or_resized_as_the_preset_does(presets):
    """Convolutions take any size. A transformer's pictures are resized inside the model, by its own preprocessing."""
    model, said = hub.from_preset(presets("resnet"), 3, (24, 20))
    assert backbone_of(model).input_shape == (None, 24, 20, 3)
    assert "resized" not in said
    model, said = same_as_keras_hub(presets("vit"), (24, 20))
    assert model.input_shape == (None, 24, 20, 3)
    assert read_convention(model) == "0-255"
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(model))))
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(answers(again, pictures((24, 20))), answers(model, pictures((24, 20))))
    assert "24x20 pixels are resized to the 16x16 that it takes" in said


@pytest.mark.one_backend(trains=True)
def test_trained_layers_before_the_head_are_kept(presets):
    """They are left out, and named, where the pictures are too small for them, or the preset has no weights for them."""
    model, said = hub.from_preset(presets("mobilenet"), 3, None)
    own = keras_hub.models.ImageClassifier.from_preset(presets("mobilenet"))
    assert value(model.get_layer("classifier_conv").kernel).tobytes() == value(own.output_conv.kernel).tobytes()
    model, said = hub.from_preset(presets("vgg"), 3, (8, 8))
    assert "the layers before it that take larger pictures (fc1, fc2)" in said
    assert [type(layer).__name__ for layer in model.layers if layer.weights] == ["Functional", "Dense"]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    "converter",
    [
        {"scale": None, "offset": None},
        {"scale": None, "offset": [-103.9, -116.8, -123.7]},
        {"scale": 0.5, "offset": -1.0},
        {"scale": 1 / 255, "offset": None},
        {"scale": 1 / 127.5, "offset": -1.0},
    ],
)
def test_each_way_of_scaling_becomes_layers(converter):
    """It computes what keras-hub's does, and the model says that it expects 0-255, also where nothing is scaled."""
    own = keras_hub.layers.ResNetImageConverter(**converter)
    scaling = keras.Sequential([keras.Input((4, 4, 3)), *hub_graph._scaling(own.scale, own.offset)])
    images = pictures((4, 4))
    np.testing.assert_array_equal(answers(scaling, images), keras.ops.convert_to_numpy(own(images)))
    assert read_convention(scaling) == "0-255"


@pytest.mark.one_backend(trains=True)
def test_preprocessing_that_is_more_than_scaling_is_refused(presets, monkeypatch):
    """It is compared on a few values, so it cannot be lost in silence."""
    kind = keras_hub.layers.MobileNetImageConverter
    monkeypatch.setattr(kind, "call", lambda self, inputs: inputs[..., ::-1], raising=False)
    with pytest.raises(ModelError, match="MobileNetImageConverter\\) does more than resize, scale and shift"):
        hub.from_preset(presets("mobilenet"), 3, None)


@pytest.mark.one_backend(trains=True)
def test_preprocessing_stays_in_float32(presets):
    """Under a mixed policy the backbone computes in 16 bits, and pixels are scaled as keras-hub scales them."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, _ = hub.from_preset(presets("mobilenet"), 3, None)
    finally:
        keras.config.set_dtype_policy("float32")
    assert [layer.compute_dtype for layer in model.layers[1:3]] == ["float32", "bfloat16"]
    assert {each.dtype for each in model.weights} == {"float32"}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Makes a folder with pictures, and works in it."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "mine", 6, 40, ("pear", "plum"))
    return tmp_path


RUN = {"data": ["mine"], "batch_size": 5, "val_split": 0.25, "epochs": 2}


@pytest.mark.one_backend(trains=True)
def test_the_head_trains_alone_first_then_all_but_batch_normalisation(place, presets):
    """As from the weights of ImageNet; the result loads with plain Keras, and a child run continues from it."""
    options = {**RUN, "model": f"hub:{presets('resnet')}"}
    plan = kresume.plan(None, quiet=True, **options)
    assert "freeze:   all but the head for the first epoch, 6 layers of batch normalisation throughout" in str(plan)
    assert f"restored: 30 weights of {presets('resnet')} (ResNetBackbone); its head of 7 classes is left out" in str(
        plan
    )
    assert "rate:     0.001 for the new head alone, falling to 0.0001; from step " in str(plan)
    assert run_training(out="1", **options).needs == ""
    with zipfile.ZipFile("1/model.keras") as archive:
        assert not needs_hub(json.loads(archive.read("config.json")))
    model = keras.models.load_model("1/model.keras")
    before = keras_hub.models.Backbone.from_preset(presets("resnet")).weights
    same = [
        value(one).tobytes() == value(two).tobytes()
        for one, two in zip(backbone_of(model).weights, before, strict=True)
    ]
    assert same == [any(role in each.path for role in ("gamma", "beta", "moving")) for each in before]


@pytest.mark.one_backend(trains=True)
def test_a_run_with_layers_of_keras_hub_continues_exactly(tmp_path, place, presets):
    """Killed while the head trains alone, and after that, it ends with the same bits; Keras and eval load it."""
    names = kill_at_every_snapshot(tmp_path, places=(1, -3), **RUN, model=f"hub:{presets('vit')}")
    assert len(names) == 2
    whole = tmp_path / "whole"
    assert hub_graph.holds_hub(keras.models.load_model(whole / "model.keras"))
    assert kresume.evaluate(str(whole), data="mine").as_dict()["all"]["images"] == 12


@pytest.mark.one_backend(trains=True)
def test_a_backbone_alone_needs_its_pixels(place, presets):
    """Nothing in its folder says them, and a guess could be wrong; with `--pixels` pictures are fed so."""
    keras_hub.models.Backbone.from_preset(presets("mobilenet")).save_to_preset("backbone")
    options = {**RUN, "model": "hub:backbone", "image_size": "16"}
    with pytest.raises(
        UsageError, match=r"no layer at its start that shows the pixel values that it expects, such as .*: give pixels="
    ):
        kresume.plan(None, quiet=True, **options)
    plan = kresume.plan(None, quiet=True, pixels="torch", **options)
    assert "73 weights of backbone (MobileNetBackbone); it holds no preprocessing" in str(plan)
    assert "pixels:   torch (pixels=), 16x16" in str(plan)
    assert "all but the head for the first epoch" in str(plan)
    model, _ = hub.from_preset("backbone", 2, (16, 16))
    assert [type(layer).__name__ for layer in model.layers if layer.weights] == ["Functional", "Dense"]


@pytest.mark.one_backend(trains=True)
def test_random_weights_start_from_scratch(place, presets):
    """No head trains alone, and the weights are not the preset's."""
    plan = kresume.plan(None, quiet=True, model=f"hub:{presets('mobilenet')}", weights="random", **RUN)
    assert "freeze:" not in str(plan)
    model, said = hub.from_preset(presets("mobilenet"), 2, None, weights=False)
    assert said == "MobileNetBackbone with initial weights"
    before = keras_hub.models.Backbone.from_preset(presets("mobilenet")).weights
    assert value(backbone_of(model).weights[0]).tobytes() != value(before[0]).tobytes()


@pytest.mark.one_backend(trains=True)
def test_a_checkpoint_of_keras_hubs_own_fit_is_continued(place):
    """Weights and slots are restored; its preprocessing, which keras-hub applies in `fit` alone, becomes layers."""
    classifier = classifier_of("vit")
    images, labels = pictures((16, 16), 4), np.array([0, 1, 2, 3])
    classifier.train_on_batch(images, labels)
    classifier.train_on_batch(images, labels)
    classifier.save("own.keras")
    names = [f"c{index}" for index in range(CLASSES)]
    config = from_arguments("own.keras", {"classes": ",".join(names)})
    live = restore_parent(config, read_parent(config), num_classes=CLASSES, image_size=None)
    assert live.kept
    own = {each.path: value(each) for each in classifier.weights}
    assert sorted(value(each).tobytes() for each in live.model.weights) == sorted(
        each.tobytes() for each in own.values()
    )
    moments = {id(weight): (weight, slot) for weight, slot in zip(*_momentums(live.optimizer), strict=True)}
    for weight, slot in zip(*_momentums(classifier.optimizer), strict=True):
        same = [other for mine, other in moments.values() if value(mine).tobytes() == value(weight).tobytes()]
        assert any(value(other).tobytes() == value(slot).tobytes() for other in same), weight.path
    expected = classifier.predict(images, verbose=0)
    np.testing.assert_allclose(answers(live.model, images), expected, rtol=1e-5, atol=1e-6)
    loaded = load(Subject("own.keras", classes=tuple(names)))
    assert (loaded.card.pixels, loaded.card.image_size) == ("0-255", (16, 16))
    assert hub_graph.holds_hub(loaded.model)
    np.testing.assert_allclose(answers(loaded.model, images), expected, rtol=1e-5, atol=1e-6)


def _momentums(optimizer):
    return optimizer._trainable_variables, optimizer._momentums


@pytest.mark.one_backend(trains=True)
def test_a_run_from_keras_hubs_own_checkpoint(place, monkeypatch):
    """It trains on, with a new head for other classes; where keras-hub is not installed, the error says so."""
    classifier = classifier_of("vgg")
    classifier.train_on_batch(pictures((16, 16)), np.array([0, 1]))
    classifier.save("own.keras")
    result = run_training("own.keras", out="1", new_head=True, **RUN)
    assert result.needs == ""
    with zipfile.ZipFile("1/model.keras") as archive:
        assert not needs_hub(json.loads(archive.read("config.json")))
    assert "--import" not in str(describe(read_checkpoint("own.keras")))
    monkeypatch.setattr("kresume.checkpoints.inspect.is_installed", lambda: False)
    assert "missing     keras-hub, whose classes the architecture holds: pip install 'kresume[hub]'" in str(
        describe(read_checkpoint("own.keras"))
    )
    monkeypatch.setattr(hub, "is_installed", lambda: False)
    with pytest.raises(MissingPackage, match="holds classes of keras-hub"):
        load(Subject("own.keras"))
    with pytest.raises(MissingPackage, match=r"hub:x needs keras-hub: pip install 'kresume\[hub\]'"):
        hub.from_preset("x", 3, None)


class Offline(OSError):
    """Stands for the error of an HTTP client without a network."""


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("preset", "words"),
    [
        (
            "resnet_18_imagenet",
            "looked for kaggle://keras/resnetv1/keras/resnet_18_imagenet/.* Download https://www.kaggle",
        ),
        ("hf://timm/resnet18", "looked for hf://timm/resnet18 and could not fetch it .*huggingface.co/timm/resnet18 "),
        ("resnet18_imagenet", "no image classifier of this name, and there is no such folder: did you mean resnet_18"),
        ("https://tfhub.dev/google/x", "models of TensorFlow Hub are others"),
        ("bert_base_en", "no image classifier of this name"),
        ("mine", "cannot load this folder .*config.json"),
    ],
)
def test_a_preset_that_cannot_be_loaded(place, monkeypatch, preset, words):
    """The error names what keras-hub looked for, and where to put it."""

    def nothing(*_, **__):
        raise Offline("Failed to resolve the host")

    monkeypatch.setattr("kagglehub.model_download", nothing)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", nothing)
    with pytest.raises(ModelError, match=words):
        hub.from_preset(preset, 3, None)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("checkpoint", "options", "words"),
    [
        (None, {"weights": "imagenet"}, "has the weights of its preset: leave weights='imagenet' out"),
        ("a.keras", {"weights": "random"}, "both say where to start"),
        (None, {"new_head": True}, "new_head=True replaces the head of a checkpoint"),
    ],
)
def test_what_contradicts_a_preset_is_refused(place, presets, checkpoint, options, words):
    """A preset brings its weights and always gets a new head."""
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save("a.keras")
    with pytest.raises(UsageError, match=words):
        kresume.plan(checkpoint, quiet=True, model=f"hub:{presets('mobilenet')}", **RUN, **options)
