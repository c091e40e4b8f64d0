"""Tests that a foreign model gets the pixels, class order and loss that it was trained with.

Otherwise the command is refused with a remedy.
"""

import json
import re
from functools import partial

import keras
import numpy as np
import pytest
from PIL import Image

import kresume
from kresume.checkpoints.layers import adapted_of
from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError, UsageError
from kresume.evaluation.evaluate import evaluate
from kresume.images import conventions, inputs
from kresume.models.pixels import adapted, read_convention
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.training.plan import candidates
from kresume.training.plan.images import check_outputs
from kresume.training.preview import make_plan
from kresume.values.first_layers import Layer, of_architecture, pixels_of
from kresume.values.input_layout import RGB
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import run_training

SIDE = 8
COLOURS = {
    "coal": (40, 40, 40),
    "fire": (220, 60, 40),
    "ink": (40, 40, 110),
    "rust": (110, 50, 40),
    "sky": (60, 80, 220),
}
CLASSES = tuple(COLOURS)


def paint(name, seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 12, (SIDE, SIDE, 3))
    return np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Writes ten noisy pictures of each of five colours."""
    folder = tmp_path_factory.mktemp("painted")
    for place, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for index in range(10):
            Image.fromarray(paint(name, 100 * place + index)).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Writes a `.keras` file trained on the colours under a convention, with an output order or a loss."""
    folder = tmp_path_factory.mktemp("trained")
    pictures = np.stack(
        [paint(name, 1000 + 100 * place + index) for place, name in enumerate(CLASSES) for index in range(20)]
    )
    places = np.repeat(np.arange(len(CLASSES)), 20)

    def write(
        convention="0-255", order=CLASSES, loss="sparse_categorical_crossentropy", front=(), activation="softmax"
    ):
        path = folder / f"{convention}-{'-'.join(order)}-{getattr(loss, 'name', loss)}-{len(front)}.keras"
        if path.exists():
            return path
        keras.utils.set_random_seed(2)
        layers = keras.layers
        inputs = keras.Input((SIDE, SIDE, 3))
        x = inputs
        for layer in front:
            x = layer(x)
        x = layers.BatchNormalization(momentum=0.5)(layers.GlobalAveragePooling2D()(x))
        x = layers.Dense(24, activation="tanh")(x)
        model = keras.Model(inputs, layers.Dense(len(order), activation=activation)(x))
        model.compile(keras.optimizers.Adam(0.03), loss)
        model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
        labels = np.array([order.index(CLASSES[place]) for place in places])
        if "sparse" not in str(getattr(loss, "name", loss)):
            labels = np.eye(len(order), dtype="float32")[labels]
        eaten = np.asarray(conventions.to_model_function(convention)(pictures))
        for _ in range(60):
            model.train_on_batch(eaten, labels)
        model.save(path)
        return path

    return write


@pytest.fixture(scope="module")
def trained_on_grey(tmp_path_factory):
    """Writes a model trained on grey levels under a convention, and ten pictures of each of three levels."""
    folder = tmp_path_factory.mktemp("grey")
    rng = np.random.default_rng(0)
    levels = np.array([20, 60, 150])
    labels = np.repeat(np.arange(3), 40)
    pictures = np.clip(levels[labels][:, None, None] + rng.normal(0, 8, (120, SIDE, SIDE)), 0, 255).astype(np.uint8)
    for index, (picture, label) in enumerate(zip(pictures[::3], labels[::3], strict=True)):
        (folder / "data" / f"level {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / "data" / f"level {label}" / f"{index}.png")
    coloured = np.repeat(pictures[..., None], 3, axis=-1)

    def write(convention):
        keras.utils.set_random_seed(2)
        layers = keras.layers
        inputs = keras.Input((SIDE, SIDE, 3))
        x = layers.BatchNormalization(momentum=0.5)(layers.GlobalAveragePooling2D()(inputs))
        model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Dense(24, activation="tanh")(x)))
        model.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy")
        model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
        eaten = np.asarray(conventions.to_model_function(convention)(coloured))
        for _ in range(60):
            model.train_on_batch(eaten, labels)
        model.save(folder / f"{convention}.keras")
        return folder / f"{convention}.keras", folder / "data"

    return write


def plan_of(path, painted, quiet, **options):
    arguments = {"data": [str(painted)], "lr": 1e-3, **options}
    return make_plan(from_arguments(str(path), arguments), quiet)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("convention", conventions.names_for(3))
@pytest.mark.sample("caffe", "bgr-0-1", "-1-1", "cifar10")
def test_each_convention_outside_the_model_is_found(trained, painted, quiet, convention):
    """Each convention outside the model is found by scoring old images.

    These are Keras's five, OpenCV's and CIFAR-10's. The table shows accuracy and loss of three.
    """
    plan = plan_of(trained(convention), painted, quiet)
    pair = next((pair for pair in conventions.TWINS if convention in pair), (convention,))
    assert plan.card.pixels in pair  # twins differ by less than a model of 50 pictures shows
    convention = plan.card.pixels
    table = rf"on 50 old images {convention} gives [\d.]+ % \(loss [\d.]+\)(; \S+ gives .*){{2}}"
    assert re.fullmatch(table, plan.pixels_reason)
    assert plan.pixels_reason.count("gives") == 3
    assert plan.before["all"]["accuracy"] > 0.9


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("convention", conventions.names_for(3, grey=True))
@pytest.mark.sample("mnist", "-1-1-inverted", "0-255")
def test_each_convention_of_grey_pictures_is_found(trained_on_grey, convention, quiet):
    """Each convention of grey pictures is found: both polarities and MNIST's statistics.

    They are tried only if no picture has a colour.
    """
    path, folder = trained_on_grey(convention)
    plan = plan_of(path, folder, quiet)
    assert plan.card.pixels == convention
    assert plan.before["all"]["accuracy"] > 0.9


@pytest.mark.one_backend(trains=True)
def test_moving_averages_that_trail_choose_no_other_scale(tmp_path, quiet):
    """After few steps, moving averages may fit `-1-1` better than the `0-1` that the weights were trained on."""
    images = tmp_path / "old"
    write_pictures(images, 40, 0)
    layers = keras.layers
    keras.utils.set_random_seed(1)
    body = [layers.Conv2D(16, 3, 2, activation="relu"), layers.BatchNormalization(), layers.Conv2D(32, 3, 2)]
    model = keras.Sequential([keras.Input((20, 20, 3)), *body, layers.ReLU(), layers.Flatten(), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.02, momentum=0.9, nesterov=True), loss)
    data = keras.utils.image_dataset_from_directory(images, image_size=(20, 20), seed=1, verbose=False)
    model.fit(data.map(lambda pictures, labels: (pictures / 255, labels)), epochs=8, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    plan = plan_of(tmp_path / "model.keras", images, quiet)
    assert plan.card.pixels == "0-1"
    assert "without what the moving averages of batch normalisation began with, 0-1 gives" in plan.pixels_reason


@pytest.mark.one_backend(trains=True)
def test_moving_averages_that_trail_hide_no_other_order(painted, quiet, tmp_path):
    """A short training gives few of its classes with its moving averages, and knows them all the same.

    Its statistics are recomputed to find the order, as they are to score it.
    """
    keras.utils.set_random_seed(1)
    layers = keras.layers
    body = [layers.Rescaling(1 / 255), layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(momentum=0.9999)]
    body += [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.BatchNormalization(momentum=0.9999)]
    head = layers.Dense(len(CLASSES), activation="softmax")
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *body, head])
    model.compile(keras.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    pictures = np.stack([paint(name, 1000 + seed) for name in CLASSES for seed in range(20)])
    places = np.repeat(np.arange(len(CLASSES))[::-1], 20)  # the outputs are in the reverse order of the names
    model.fit(pictures, places, epochs=15, verbose=0)
    assert len(np.unique(model.predict(pictures, verbose=0).argmax(-1))) <= 2  # of five classes, with moving averages
    model.save(tmp_path / "early.keras")
    arguments = {"data": [str(painted)], "epochs": 1, "cache": "off", "interpolation": "area"}
    with pytest.raises(UsageError, match=r"give --classes sky,rust,ink,fire,coal"):
        make_plan(from_arguments(str(tmp_path / "early.keras"), arguments), quiet)
    arguments["classes"] = ",".join(CLASSES[::-1])
    plan = make_plan(from_arguments(str(tmp_path / "early.keras"), arguments), quiet)
    assert "no better than chance" not in str(plan)


@pytest.mark.one_backend(trains=True)
def test_any_other_statistics_are_said(trained, painted, quiet):
    """`mean=…,std=…[,bgr]` is used as given, in training as in the plan."""
    said = "mean=0.2,0.5,0.4,std=0.3,bgr"
    path = trained(said)
    plan = plan_of(path, painted, quiet, pixels=said)
    assert (plan.card.pixels, plan.pixels_reason) == (said, "--pixels")
    assert plan.before["all"]["accuracy"] > 0.9
    with pytest.raises(UsageError, match=r"--pixels mean=0\.2: mean and std need one number each"):
        plan_of(path, painted, quiet, pixels="mean=0.2")


@pytest.mark.one_backend(trains=True)
def test_two_that_fit_alike_are_named_and_no_third(painted, quiet, tmp_path):
    """Two conventions that fit equally well are named, and no third.

    A model that normalizes each picture to one length treats values and their multiples alike.
    """
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.UnitNormalization()(layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, layers.Dense(5, activation="softmax")(layers.Dense(24, activation="tanh")(x)))
    model.compile(keras.optimizers.Adam(0.03), "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
    pictures = np.stack([paint(name, 1000 + index) for name in CLASSES for index in range(20)])
    labels = np.repeat(np.arange(5), 20)
    for _ in range(60):
        model.train_on_batch(pictures / np.float32(255), labels)
    model.save(tmp_path / "m.keras")
    with pytest.raises(
        CheckpointError, match=r"two pixel conventions fit .* \(0-\S+ gives [^;]*; 0-\S+ gives [^;]*\): give"
    ):
        plan_of(tmp_path / "m.keras", painted, quiet)


def _rescaling():
    return (keras.layers.Rescaling(1 / 255),)


def _normalization():
    return (keras.layers.Normalization(mean=[120.0] * 3, variance=[4000.0] * 3),)


def _hub_style():
    inner = keras.Input((SIDE, SIDE, 3))
    resized = keras.layers.Resizing(SIDE, SIDE)(inner)
    return (keras.Model(inner, keras.layers.Rescaling(1 / 127.5, offset=-1.0)(resized), name="image_converter"),)


def _augmented():
    return (keras.layers.RandomFlip(), keras.layers.Rescaling(1 / 255))


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("front", [_rescaling, _normalization, _hub_style, _augmented])
def test_a_model_that_rescales_by_itself_eats_0_255(trained, painted, quiet, front):
    """A model that begins with Rescaling or Normalization expects 0-255.

    The layer may be in a preprocessor of its own or behind augmentation.
    """
    plan = plan_of(trained("0-255", front=front(), loss="sparse_categorical_crossentropy"), painted, quiet)
    assert plan.card.pixels == "0-255"
    assert plan.before["all"]["accuracy"] > 0.9


@pytest.mark.one_backend(trains=True)
def test_smaller_pixels_than_the_first_layers_expect_are_told(trained, painted, quiet):
    """The model is fed as `--pixels` says, and a note names the pixels that its first layers expect."""
    order = "coal,fire,ink,rust,sky"
    path = trained("0-255", front=_rescaling(), loss="sparse_categorical_crossentropy")
    told = [
        [each for each in plan_of(path, painted, quiet, pixels=pixels, classes=order).notes if "first layers" in each]
        for pixels in ("0-1", "0-255", "bgr-0-255")
    ]
    assert [len(each) for each in told] == [1, 0, 0]
    assert told[0][0].startswith("--pixels 0-1: the model's first layers rescale or normalise, as for 0-255")


@pytest.mark.one_backend(trains=True)
def test_labels_that_are_numbers_are_said_to_be_another_task():
    """A model of one output that predicts an age, say, is no classifier; classes that are digits are."""
    for names in (("1.5", "20", "3e2"), ("1", "2", "3", "4")):
        with pytest.raises(UsageError, match=r"predicts a number \(regression\) use kresume.BackupAndRestore"):
            check_outputs(names, "sorted", 1, "m.keras", extends=False)
    check_outputs(("0", "1"), "sorted", 1, "m.keras", extends=False)
    with pytest.raises(UsageError, match=r"which separates two classes, but there are 3 classes"):
        check_outputs(("a", "b", "1"), "sorted", 1, "m.keras", extends=False)


@pytest.mark.one_backend(trains=True)
def test_what_the_first_layers_say_is_read_without_images():
    """The first layers' classes are read without images: of the model, and of its file, which `inspect` does not build."""

    class Own(keras.layers.Rescaling):
        """A class of the user's own counts as the class below it."""

    for front, pixels in (
        *((front, "0-255") for front in (_rescaling, _normalization, _hub_style, _augmented)),
        (lambda: [keras.layers.Rescaling(2.0)], None),
        (lambda: [keras.layers.Conv2D(2, 3), keras.layers.Rescaling(1 / 255)], None),
    ):
        model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), *front()])
        assert read_convention(model) == pixels
        assert pixels_of(of_architecture(keras.saving.serialize_keras_object(model))) == pixels
    assert read_convention(keras.Sequential([keras.Input((SIDE, SIDE, 3)), Own(1 / 255)])) == "0-255"
    for scale in ("wide", None, [None], {"a": 1}, 10**400, []):
        assert all(pixels_of([Layer("front", name, scale)]) is None for name in ("Rescaling", "Multiply", "Add"))
    node = {"inbound_nodes": [{"args": 3}], "class_name": "Add", "config": {}}
    for layers in (3, [3, {"config": None}], [node], [{**node, "inbound_nodes": [3]}], [{**node, "inbound_nodes": 3}]):
        assert pixels_of(of_architecture({"config": {"layers": layers}})) is None
    assert pixels_of(of_architecture(None)) is pixels_of(of_architecture(3)) is None


def _in_a_model(front):
    inputs = keras.Input((SIDE, SIDE, 3))
    return keras.Model(inputs, front(inputs))


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("front", "pixels"),
    [
        *(
            (getattr(keras.applications, name).preprocess_input, "0-255")
            for name in ("mobilenet_v2", "vgg16", "densenet")
        ),
        (lambda x: x / 255 - 0.5, "0-255"),
        (lambda x: (x - 127.5) / 127.5, "0-255"),
        (lambda x: keras.ops.multiply(x, np.full(3, 1 / 255, "float32")), "0-255"),
        (lambda x: x - 0.5, None),
        (lambda x: (x + 128) / 255, None),
        (lambda x: keras.layers.Concatenate()([x, x * 0.1]), None),
        (lambda x: keras.layers.Concatenate()([x / 255, keras.layers.Rescaling(1 / 127.5, -1)(x)]), "0-255"),
        (lambda x: keras.layers.Concatenate()([_in_a_model(lambda y: y / 255)(x), x]), None),
        (_in_a_model(lambda y: y / 255), "0-255"),
        (lambda x: _in_a_model(keras.layers.RandomRotation(0.1))(x) / 255, "0-255"),
        (lambda x: _in_a_model(keras.layers.Conv2D(3, 1))(x) / 255, None),
        (lambda x: x * 2, None),
        (lambda x: x / 4, None),
        (lambda x: 255 / x, None),
        (lambda x: x * x, None),
        (lambda x: keras.layers.Add()([x, x]), None),
    ],
)
def test_what_the_first_operations_compute_is_read(front, pixels):
    """Of a functional model, and of its file: the transfer learning of Keras's own guides has `preprocess_input` there."""
    inputs = keras.Input((SIDE, SIDE, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(front(keras.layers.RandomFlip()(inputs))))
    assert read_convention(model) == pixels
    for config in (keras.saving.serialize_keras_object(model), json.loads(model.to_json())):
        assert pixels_of(of_architecture(config)) == pixels


SCALES = {
    "0-255": (1, 0),
    "0-1": (1 / 255, 0),
    "-1-1": (1 / 127.5, -1),
    "torch": (1 / 57, -2.1),
    "16 bits": (257, 0),
    "dark": (0.06, 0),
}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("how", ["adapted", "given", "one number", "a pixel each"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_normalization_says_the_scale_that_it_was_made_for(tmp_path, scale, how):
    """Only one made for bytes expects them: a model that was adapted to x / 255 was fed 0-255, in silence."""
    factor, shift = SCALES[scale]
    pictures = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3)).astype("float32")
    values = pictures * np.float32(factor) + np.float32(shift)
    options = {"one number": {"axis": None}, "a pixel each": {"axis": (1, 2, 3)}}.get(how, {})
    layer = keras.layers.Normalization(**options)
    if how == "given":
        layer = keras.layers.Normalization(
            mean=values.mean((0, 1, 2)).tolist(), variance=values.var((0, 1, 2)).tolist()
        )
    else:
        layer.adapt(values)
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(2)])
    pixels = "0-255" if scale in {"0-255", "dark"} else None
    assert read_convention(model) == pixels
    means, spread = adapted(model)
    np.testing.assert_allclose((np.mean(means), spread), (values.mean(), values.std()), rtol=1e-3, atol=1e-3)
    for name in ("m.keras", "m.h5", "m.weights.h5"):
        (model.save_weights if name == "m.weights.h5" else model.save)(tmp_path / name)
        state = read_checkpoint(str(tmp_path / name))
        if name != "m.weights.h5" and how != "given":  # a file of weights has no architecture
            assert pixels_of(of_architecture(state.architecture)) is None
        found = partial(adapted_of, state)
        architecture = keras.saving.serialize_keras_object(model)
        assert pixels_of(of_architecture(state.architecture or architecture, found)) == pixels


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Normalization(mean=127.5, variance=127.5**2, invert=True),
        keras.layers.Normalization(mean=0.0, variance=1.0),
        keras.layers.Normalization(),
    ],
)
def test_a_normalization_that_says_nothing(layer):
    """One that is inverted takes what another one gave; one of 0 and 1 was never adapted."""
    model = keras.Sequential([keras.Input((SIDE, SIDE, 3)), layer, keras.layers.Dense(2)])
    assert read_convention(model) is adapted(model) is None
    assert pixels_of(of_architecture(keras.saving.serialize_keras_object(model))) is None


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize("name", ["0-1", "-1-1", "0-255"])
def test_only_values_to_which_a_layer_was_adapted_are_tried(name, order):
    """Their size, and the order of their colours where the pictures have more of one."""
    pictures = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3)).astype("uint8")
    pictures[..., 0] //= 2
    way = name if order == "rgb" else f"bgr-{name}"
    values = np.asarray(inputs.to_input(way, RGB)(pictures))
    ways = candidates.feedings_of(None, RGB, None, grey=False)
    found = candidates.as_adapted(ways, pictures, (tuple(values.mean((0, 1, 2)).tolist()), float(values.std())))
    assert list(found) == [way]
    means = values.mean((0, 1, 2))
    means[0] += 0.4 * values.std()
    others = candidates.as_adapted(ways, pictures, (tuple(means.tolist()), float(values.std())))
    assert {name, f"bgr-{name}"} <= {*others}  # the means of other pictures do not tell the order of the colours
    assert candidates.as_adapted(ways, pictures, None) == ways
    assert candidates.as_adapted(ways, pictures, ((5e4,), 1e4)) == ways


@pytest.mark.one_backend(trains=True)
def test_a_model_adapted_to_smaller_values_is_fed_them(trained, painted, tmp_path, capsys):
    """In the plan without images that tell them apart; `eval` asks, and says for which values the layer is."""
    pictures = np.stack([np.asarray(Image.open(path).resize((SIDE, SIDE))) for path in sorted(painted.rglob("*.png"))])
    front = keras.layers.Normalization()
    front.adapt(pictures.astype("float32") / 255)
    model = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), front, keras.layers.Flatten(), keras.layers.Dense(5, "softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.save(tmp_path / "m.keras")
    plan = kresume.plan(tmp_path / "m.keras", data=painted, lr=1e-3, optimizer="adam:reset", quiet=True)
    assert "pixels:   0-1 (" in str(plan)
    with pytest.raises(
        UsageError, match=r"it expects \(its Normalization is for a mean of 0.\d+ and a deviation of 0.\d+\)"
    ):
        evaluate(str(tmp_path / "m.keras"), data=painted)


@pytest.mark.one_backend(trains=True)
def test_a_backbone_that_was_called_elsewhere_is_read_where_it_is():
    """Backbones of keras-hub have a call of their own, on an input of the same name."""
    inputs = keras.Input((SIDE, SIDE, 3), name="images")
    backbone = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    backbone(inputs)
    outer = keras.Input((SIDE, SIDE, 3), name="images")
    model = keras.Model(outer, backbone(keras.layers.Rescaling(1 / 255)(outer)))
    assert read_convention(model) == "0-255"
    assert pixels_of(of_architecture(keras.saving.serialize_keras_object(model))) == "0-255"


@pytest.mark.one_backend(trains=True)
def test_a_shuffled_order_of_classes_is_refused_with_the_order_that_explains_it(trained, painted, quiet):
    """A shuffled class order is refused, and the order that the error proposes is right.

    All outputs are moved and the pixels are unknown.
    """
    order = ("sky", "coal", "fire", "ink", "rust")
    path = trained("0-1", order)
    # A wrong convention may win while every output is moved; the order that fits the right one is found either way.
    with pytest.raises((CheckpointError, UsageError), match=rf"--classes {','.join(order)} "):
        plan_of(path, painted, quiet)
    plan = plan_of(path, painted, quiet, classes=",".join(order))
    assert plan.card.pixels == "0-1"
    assert plan.before["all"]["accuracy"] > 0.9


@pytest.mark.one_backend(trains=True)
def test_two_exchanged_outputs_are_named(trained, painted, quiet):
    """Two exchanged outputs of five are named, with the pixels known and unknown.

    Three of five classes right is a plausible model, yet a wrong order.
    """
    order = ("coal", "rust", "ink", "fire", "sky")
    words = (
        r"reading output 1 as 'rust', 3 as 'fire'( with pixels torch)?"
        r" is right on (9\d|100) % of 50 old images, the sorted order on \d\d %: "
        r"give --classes coal,rust,ink,fire,sky \(or --classes coal,fire,ink,rust,sky"
    )
    for path in (trained("torch", order), trained("0-255", order, front=_rescaling())):
        with pytest.raises(UsageError, match=words):
            plan_of(path, painted, quiet)
        assert plan_of(path, painted, quiet, classes=",".join(order)).before["all"]["accuracy"] > 0.9
        assert plan_of(path, painted, quiet, classes=",".join(CLASSES)).before["all"]["accuracy"] < 0.9


@pytest.mark.one_backend(trains=True)
def test_eval_and_a_given_order_say_which_one_fits(trained, painted, quiet, tmp_path, capsys):
    """`eval` of a checkpoint without names reports that the sorted order is wrong.

    `--classes` is kept, with a doubt, in `eval`, `export` and `train`.
    """
    order = ("coal", "rust", "ink", "fire", "sky")
    path = trained("0-255", order, front=_rescaling())
    found = evaluate(path, painted, cache="off", reporter=quiet)
    assert re.search(
        r"reading output 1 as 'rust', 3 as 'fire' is right on .* classes='coal,rust,ink,fire,sky'$", found.note
    )
    assert found.as_dict()["note"] == found.note
    assert evaluate(path, painted, cache="off", reporter=quiet, classes=order).note == ""
    assert evaluate(path, painted, cache="off", reporter=quiet, classes={n: i for i, n in enumerate(order)}).note == ""
    wrong = evaluate(path, painted, cache="off", reporter=quiet, classes=CLASSES).note
    assert re.search(r"contradict the order .* gives: .*classes='coal,rust,ink,fire,sky' would be that order$", wrong)
    kresume.export(path, tmp_path / "out", format="keras", classes=CLASSES, data=painted, reporter=Reporter(quiet=True))
    assert "these images contradict the order" in "".join(capsys.readouterr())
    plan = plan_of(path, painted, quiet, classes=",".join(CLASSES))
    assert any(note.endswith("--classes coal,rust,ink,fire,sky would be that order") for note in plan.notes)
    assert not any("would be that order" in note for note in plan_of(path, painted, quiet, classes=order).notes)


@pytest.mark.one_backend(trains=True)
def test_a_model_that_fits_no_images_at_all_is_refused(painted, quiet, tmp_path):
    """A model that fits no images under any convention is refused with exit code 1, never guessed.

    Its weights are untrained.
    """
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), keras.layers.Flatten(), keras.layers.Dense(5, activation="softmax")]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "m.keras")
    with pytest.raises(CheckpointError, match=r"is not right .* with any pixel convention|fit .* about equally"):
        plan_of(tmp_path / "m.keras", painted, quiet)


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("outputs", [4, 7])
def test_another_count_of_folders_than_outputs_is_a_usage_error(trained, painted, quiet, outputs):
    """A number of folders that differs from the outputs is a usage error with the option that names them.

    Tried: seven outputs and five folders, four outputs and five folders.
    """
    order = (*CLASSES, "snow", "tar")[:outputs] if outputs > 5 else CLASSES[:4]
    if outputs > 5:
        path = trained("0-255", order, front=_rescaling())
    else:
        path = painted.parent / "four.keras"
        layers = [
            keras.Input((SIDE, SIDE, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
        model = keras.Sequential(layers)
        model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.optimizer.build(model.trainable_variables)
        model.save(path)
    with pytest.raises(UsageError, match=rf"has {outputs} outputs, but there are 5 classes, .*sorted.*--classes a,b,c"):
        plan_of(path, painted, quiet)
    if outputs > 5:
        assert plan_of(path, painted, quiet, classes=",".join(order)).before["all"]["accuracy"] > 0.9


@pytest.mark.one_backend(trains=True)
def test_soft_labels_come_when_the_loss_or_mixup_wants_them(trained, painted, quiet, tmp_path):
    """Labels are one-hot if the loss or MixUp needs it.

    A checkpoint of categorical cross-entropy gets rows, logits stay logits, and MixUp turns a sparse loss into its soft
    form.
    """
    soft = trained("0-255", loss="categorical_crossentropy", front=_rescaling())
    assert plan_of(soft, painted, quiet).loss == "categorical_crossentropy (the checkpoint's)"
    smoothed = keras.losses.CategoricalCrossentropy(label_smoothing=0.1, name="smoothed")
    result = run_training(
        str(trained("0-255", loss=smoothed, front=_rescaling())),
        data=[str(painted)],
        lr=1e-3,
        epochs=1,
        out=str(tmp_path / "soft"),
    )
    assert result.after["all"]["accuracy"] > 0.9
    sparse = trained("0-255", front=_rescaling())
    assert (
        plan_of(sparse, painted, quiet, mixup=0.2).loss
        == "categorical_crossentropy (the checkpoint's; for mixed labels)"
    )
    logits = keras.losses.SparseCategoricalCrossentropy(from_logits=True, name="sparse-logits")
    plan = plan_of(trained("0-255", loss=logits, front=_rescaling(), activation=None), painted, quiet)
    assert plan.before["all"]["accuracy"] > 0.9
    assert plan.before["all"]["loss"] < 1.0
