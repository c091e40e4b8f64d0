"""Tests that a grown head keeps what the model knew: weights, slots and logits of the old classes."""

import keras
import numpy as np
import pytest

from kresume.errors import ModelError, UsageError
from kresume.models import grow, optimizers, slots, structure
from kresume.models.head import build_wider, find_head
from kresume.models.outputs import read_outputs
from kresume.tasks.binary import BINARY
from kresume.tasks.single_label import SINGLE_LABEL
from kresume.tasks.task import Head
from tests.helpers.steps import step_at_random

pytestmark = pytest.mark.one_backend(trains=True)  # whole runs of both backends: test_grown_runs.py

CLASSES, NEW, SIDE = 3, 2, 6
layers = keras.layers


def _features():
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 3, padding="same")(inputs)
    x = layers.BatchNormalization()(x)
    return inputs, layers.Dropout(0.3)(x)


def dense(units=CLASSES, activation="softmax", **options):
    inputs, x = _features()
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(units, activation=activation, **options)(x))


def dense_then(*after, units=CLASSES, **options):
    inputs, x = _features()
    x = layers.Dense(units, **options)(layers.GlobalMaxPooling2D()(x))
    for layer in after:
        x = layer(x)
    return keras.Model(inputs, x)


def sequential():
    return keras.Sequential(
        [keras.Input((SIDE, SIDE, 3)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(CLASSES, "softmax")]
    )


def nested():
    inputs, x = _features()
    backbone = keras.Model(inputs, x, name="backbone")
    head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(CLASSES), layers.Softmax()], name="head")
    outer = keras.Input((SIDE, SIDE, 3))
    return keras.Model(outer, head(backbone(outer)))


def convolution(after, units=CLASSES, activation="softmax"):
    inputs, x = _features()
    x = layers.Conv2D(units, 1)(layers.AveragePooling2D(SIDE)(x) if after == "reshape" else x)
    x = layers.Reshape((units,))(x) if after == "reshape" else layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Activation(activation)(x))


def through(model, function):
    """A model of the model, and the function of its output."""
    inputs = keras.Input((SIDE, SIDE, 3))
    return keras.Model(inputs, function(model(inputs)))


@keras.saving.register_keras_serializable("grow")
class Own(keras.Model):
    """A model whose own code makes and calls its layers; two Dense have as many outputs as there are classes."""

    def __init__(self, num_classes=CLASSES, width=CLASSES, **options):
        super().__init__(**options)
        self.convolution = layers.Conv2D(4, 3)
        self.pool = layers.GlobalAveragePooling2D()
        self.hidden = layers.Dense(width, "relu", name="hidden")
        self.top = layers.Dense(num_classes, name="top")
        self.sizes = {"num_classes": num_classes, "width": width}

    def call(self, inputs, training=False):
        return self.top(self.hidden(self.pool(self.convolution(inputs))))

    def get_config(self):
        return {**super().get_config(), **self.sizes}


def own(width=CLASSES):
    model = Own(width=width)
    model(np.zeros((1, SIDE, SIDE, 3), "float32"))
    return model


FORMS = {
    "softmax inside": dense,
    "logits": lambda: dense(activation=None),
    "without bias": lambda: dense(use_bias=False),
    "activation apart": lambda: dense_then(layers.Activation("softmax")),
    "dropout and cast behind": lambda: dense_then(layers.Dropout(0.2), layers.Activation("linear", dtype="float32")),
    "sequential": sequential,
    "nested": nested,
    "1x1 convolution, pooled": lambda: convolution("pool"),
    "1x1 convolution, reshaped": lambda: convolution("reshape"),
    "own code": own,
}
SINGLE = {
    "sigmoid inside": lambda: dense(1, "sigmoid"),
    "sigmoid apart": lambda: dense_then(layers.Activation("sigmoid"), units=1),
    "sigmoid as an operation": lambda: through(dense(1, None), keras.ops.sigmoid),
    "a nested one behind a 1x1 convolution": lambda: through(
        through(convolution("pool", 1, None), keras.ops.sigmoid), layers.Identity()
    ),
    "one logit": lambda: dense(1, None),
}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(1e-2, amsgrad=True),
    "adamw with averages": lambda: keras.optimizers.AdamW(1e-2, use_ema=True),
    "sgd with momentum": lambda: keras.optimizers.SGD(1e-2, momentum=0.9),
    "rmsprop": lambda: keras.optimizers.RMSprop(1e-2, momentum=0.5, centered=True),
    "adagrad": lambda: keras.optimizers.Adagrad(1e-2),
    "adafactor": lambda: keras.optimizers.Adafactor(1e-2),
    "accumulating": lambda: keras.optimizers.Adam(1e-2, gradient_accumulation_steps=2),
}


def images(count=8):
    return np.random.default_rng(0).random((count, SIDE, SIDE, 3)).astype("float32")


def trained(model, optimizer="adam"):
    """Makes three steps, so that no weight and no slot is as it began."""
    single = model.output_shape[-1] == 1 if hasattr(model, "output_shape") else False
    loss = "binary_crossentropy" if single else "sparse_categorical_crossentropy"
    model.compile(OPTIMIZERS[optimizer](), loss, jit_compile=False)
    return step_at_random(model)


def grown(model, *, softmax=False, name=None):
    """Grows the head by two classes; returns `(wider model, its optimizer, old head, new head, rows)`."""
    head = find_head(model, name)
    old = max(head.kernel.shape[-1], 2)
    wider, wider_head = build_wider(model, head, old + NEW, softmax=softmax, again=None)
    features = grow.mean_features(model, head, [(images(), 8)], np.arange(8) % (old + NEW), old + NEW, {})
    rows = grow.new_rows(head, features, NEW, 0)
    saved = optimizers.describe(model.optimizer)
    optimizer = grow.fill(model, model.optimizer, head, wider, wider_head, saved, rows)
    return wider, optimizer, head, wider_head, rows


def value(variable):
    return np.array(keras.ops.convert_to_numpy(variable))


def by_place(model):
    addresses = structure.address_of(model)
    return {addresses[id(variable)].position: value(variable) for variable in model.variables}


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_is_kept_and_the_old_classes_answer_as_before(form):
    """Bytes of all weights, seeds and statistics are kept; the old outputs, as odds among each other, too."""
    model = trained(FORMS[form]())
    before = model.predict(images(), verbose=0)
    wider, _, head, wider_head, rows = grown(model, name="top" if form == "own code" else None)
    one, other = by_place(model), by_place(wider)
    own = {structure.address_of(model)[id(each)].position for each in (head.kernel, head.bias) if each is not None}
    assert list(one) == list(other)
    for place, array in one.items():
        kept = other[place][..., :CLASSES] if place in own else other[place]
        assert kept.tobytes() == array.tobytes(), place
    after = wider.predict(images(), verbose=0)
    assert after.shape == (8, CLASSES + NEW)
    odds = before if before.min() < 0 else np.log(before)  # a softmax over more classes keeps the odds of the old ones
    kept = after[:, :CLASSES] if before.min() < 0 else np.log(after[:, :CLASSES])
    np.testing.assert_allclose(kept - kept[:, :1], odds - odds[:, :1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value(wider_head.kernel)[..., CLASSES:].reshape(-1, NEW), rows.kernel, rtol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_slots_of_the_old_rows_are_kept(optimizer):
    """Every slot keeps its bytes, and `iterations` go on; new rows start as a fresh optimizer's, averages at the rows."""
    model = trained(dense(), optimizer)
    wider, now, _, wider_head, rows = grown(model)
    fresh = optimizers.make_optimizer(optimizers.describe(model.optimizer), 1e-3)
    fresh.build(wider.trainable_variables)
    assert int(value(now._iterations)) == int(value(model.optimizer._iterations)) > 0
    before, after, start = (slots.slot_lists(each) for each in (model.optimizer, now, fresh))
    assert list(before) == list(after)
    assert before
    for name, listed in before.items():
        for old, new, begun, weight in zip(listed, after[name], start[name], wider.trainable_variables, strict=True):
            if old is None:
                assert new is None
                continue
            expected = value(begun)
            if name == slots.AVERAGES and weight is wider_head.kernel:
                expected[..., CLASSES:] = rows.kernel
            if name == slots.AVERAGES and weight is wider_head.bias:
                expected[..., CLASSES:] = rows.bias
            expected[tuple(slice(0, size) for size in old.shape)] = value(old)
            assert value(new).tobytes() == expected.tobytes(), (name, weight.path)


@pytest.mark.parametrize(
    ("form", "optimizer"),
    [
        *(("sigmoid inside", name) for name in ("adam", "sgd with momentum", "adamw with averages", "rmsprop")),
        *((form, "adam") for form in list(SINGLE)[1:]),
    ],
)
def test_one_sigmoid_output_becomes_a_softmax_with_the_same_probabilities(form, optimizer):
    """Among the two old classes the probabilities are what they were; slots go to both rows, signed where they have a sign."""
    model = trained(SINGLE[form](), optimizer)
    logits = form == "one logit"
    before = model.predict(images(), verbose=0)[:, 0]
    before = 1 / (1 + np.exp(-before)) if logits else before
    wider, now, head, wider_head, _ = grown(model, softmax=not logits)
    after = wider.predict(images(), verbose=0)
    after = np.exp(after) / np.exp(after).sum(1, keepdims=True) if logits else after
    np.testing.assert_allclose(after.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(after[:, 1] / after[:, :2].sum(1), before, rtol=1e-5)
    kernel = value(wider_head.kernel)
    assert (kernel[..., 1] - kernel[..., 0]).tobytes() == value(head.kernel)[..., 0].tobytes()
    place = [variable is wider_head.kernel for variable in wider.trainable_variables].index(True)
    for name, listed in slots.slot_lists(model.optimizer).items():
        old, new = value(listed[place])[..., 0], value(slots.slot_lists(now)[name][place])
        meaning = slots.meaning_of(now, name)
        share = 0.5 if name == slots.AVERAGES else 1.0
        assert new[..., 1].tobytes() == (share * old).astype("float32").tobytes(), name
        np.testing.assert_array_equal(new[..., 0], share * (old if meaning in slots.SIZES else -old))


def test_frozen_layers_stay_frozen():
    """A frozen layer is frozen in the grown model, and has no slot there."""
    model = dense()
    model.layers[1].trainable = False
    wider, optimizer, *_ = grown(trained(model))
    assert [layer.trainable for layer in wider.layers] == [layer.trainable for layer in model.layers]
    assert len(optimizer._momentums) == len(wider.trainable_variables) == 4


def test_the_parent_is_left_as_it_was():
    """Growing reads the model and changes none of it, its configuration included."""
    model = trained(dense_then(layers.Reshape((CLASSES, 1)), layers.Reshape((CLASSES,)), layers.Activation("softmax")))
    config, before, weights = model.get_config(), model.predict(images(), verbose=0), by_place(model)
    grown(model)
    assert model.get_config() == config
    assert model.predict(images(), verbose=0).tobytes() == before.tobytes()
    assert all(by_place(model)[place].tobytes() == array.tobytes() for place, array in weights.items())


def test_features_are_what_the_head_receives():
    """The mean features of a class are those that a model without the head gives; padding does not count."""
    model = trained(dense())
    below = keras.Model(model.inputs, model.layers[-1].input)
    labels = np.array([0, 1, 0, 1, 1])
    batches = [(images()[:4], 4), (images()[4:], 1)]
    found = grow.mean_features(model, find_head(model), batches, labels, NEW, {})
    alone = below.predict(images(), verbose=0)[:5].astype("float64")
    expected = np.stack([alone[labels == number].mean(0) for number in range(NEW)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_imprinted_rows_point_to_their_class():
    """A row is the class's mean features less the mean over the classes that have images, at the old rows' norm.

    On that mean the new rows score what the old ones do on average.
    """
    model = trained(dense())
    head, features = find_head(model), np.random.default_rng(1).random((CLASSES + NEW, 4))
    features[1] = np.nan  # no image of this old class
    rows = grow.new_rows(head, features, NEW, 0)
    kernel, bias = value(head.kernel).astype("float64"), value(head.bias).astype("float64")
    common = features[[0, 2, 3, 4]].mean(0)
    norm = np.linalg.norm(kernel, axis=0).mean()
    for number, row in enumerate(rows.kernel.T):
        direction = features[CLASSES + number] - common
        np.testing.assert_allclose(row, norm * direction / np.linalg.norm(direction))
    np.testing.assert_allclose(common @ rows.kernel + rows.bias, (common @ kernel + bias).mean())


def test_random_rows_are_small_and_follow_the_seed():
    """Random rows have a tenth of the old norm, no bias, and repeat with the seed."""
    head = find_head(trained(dense()))
    one, same, other = (grow.new_rows(head, None, NEW, seed) for seed in (1, 1, 2))
    norm = np.linalg.norm(value(head.kernel), axis=0).mean()
    np.testing.assert_allclose(np.linalg.norm(one.kernel, axis=0), 0.1 * norm)
    assert one.kernel.tobytes() == same.kernel.tobytes() != other.kernel.tobytes()
    assert not one.bias.any()


def added():
    inputs, x = _features()
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Add()([layers.Dense(CLASSES, name="a")(x), layers.Dense(CLASSES, name="b")(x)]))


REFUSED = {
    "weights behind the head": (
        lambda: dense_then(layers.BatchNormalization(name="norm")),
        {},
        ModelError,
        r"backwards it has norm \(BatchNormalization\).*--head NAME, one of dense",
    ),
    "several branches": (added, {}, ModelError, r"it has add\w* \(Add\).*--head NAME, one of a, b"),
    "own code with two candidates": (own, {}, ModelError, "hidden, top have 3 outputs. Name it with --head NAME"),
    "no such layer": (dense, {"name": "nowhere"}, UsageError, "--head nowhere is no layer of the model: name a Dense"),
    "not a head": (dense_then, {"name": "dropout"}, UsageError, "--head dropout is a Dropout: name a Dense"),
    "a layer in the middle": (
        lambda: own(4),
        {"name": "hidden"},
        ModelError,
        "the model is not the same otherwise|makes its",
    ),
    "another function than a sigmoid": (
        lambda: through(dense(1, None), keras.ops.hard_sigmoid),
        {"softmax": True},
        ModelError,
        "is given by hardsigmoid: only a sigmoid or a logit becomes",
    ),
    "an output that a squared error compares": (
        lambda: dense(1, None),
        {"softmax": True},
        ModelError,
        "is compared by its loss with 0 and 1 as it is: only a sigmoid or a logit becomes.*--new-head",
    ),
    "an activation that bounds one output": (
        lambda: dense(1, "tanh"),
        {},
        ModelError,
        "one output is given by tanh: only a sigmoid or a logit becomes.*new head with --new-head and images of all",
    ),
    "another sigmoid": (
        lambda: dense_then(layers.Activation("hard_sigmoid"), units=1),
        {"softmax": True},
        ModelError,
        "is given by hard_sigmoid: only a sigmoid",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_head_that_is_not_found_is_refused(case):
    """The error names the layers that were looked at, and --head."""
    make, options, error, message = REFUSED[case]
    model = make()
    if options.get("name") == "dropout":
        options = {"name": next(layer.name for layer in model.layers if isinstance(layer, layers.Dropout))}
        message = message.replace("--head dropout", f"--head {options['name']}")
    with pytest.raises(error, match=message):
        grown(trained(model) if case != "another function than a sigmoid" else model, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: dense(1, None),
        lambda: dense(1, "tanh"),
        lambda: dense(1, "sigmoid"),
        lambda: dense_then(layers.Activation("hard_sigmoid"), units=1),
        lambda: through(dense(1, None), keras.ops.sigmoid),
        lambda: through(dense(1, None), keras.ops.tanh),
    ],
)
def test_a_new_head_in_place_of_one_output_is_a_softmax(make):
    """Whatever bent the single output, the new ones are probabilities of which any may be the highest."""
    model = trained(make())
    wider, _ = build_wider(model, find_head(model), 4, softmax=True, again=None, replaces=True)
    assert read_outputs(wider).exclusive
    np.testing.assert_allclose(wider.predict(images(), verbose=0).sum(1), 1.0, rtol=1e-5)


def bent(first, behind):
    """One output, with an activation inside and a function behind it."""
    return through(dense(1, first), behind)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: dense(1, layers.LeakyReLU()), "probabilities"),
        (lambda: bent("tanh", layers.Activation("sigmoid")), "probabilities"),
        (lambda: bent(None, lambda value: value * 5.0), "logits"),
        (lambda: bent("tanh", lambda value: value * 5.0), "logits"),
        (lambda: bent(None, lambda value: 5.0 * keras.ops.tanh(value)), "logits"),
        (lambda: through(convolution("pool", 1, "sigmoid"), layers.Identity()), "probabilities"),
    ],
)
def test_a_new_head_keeps_what_follows_it_or_is_the_last_activation(make, kind):
    """Outputs are probabilities that add up to 1 and come near it, or logits that reach far."""
    model = trained(make())
    wider, head = build_wider(model, find_head(model), 4, softmax=True, again=None, replaces=True)
    assert read_outputs(wider).are == kind
    head.kernel.assign(1e4 * value(head.kernel))
    outputs = wider.predict(images(), verbose=0)
    if kind == "logits":
        assert np.abs(outputs).max() > 4.5
    else:
        np.testing.assert_allclose(outputs.sum(1), 1.0, rtol=1e-5)


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: bent(None, keras.ops.softsign),
        lambda: bent(None, keras.ops.erf),
        lambda: bent(None, layers.ReLU(max_value=1.0)),
        lambda: bent(None, lambda value: (keras.ops.tanh(value) + 1) / 2),
        lambda: bent("tanh", lambda value: (value + 1) / 2),
        lambda: bent("sigmoid", lambda value: value * 0.5),
    ],
)
def test_outputs_that_can_be_neither_probabilities_nor_logits_are_refused(make, replaces):
    """Between two values no class can be far more probable than the others: no training would change that."""
    model = trained(make())
    said = "keep 4 outputs between .* FILE.py:FUNCTION|is given by tanh: only a sigmoid"
    with pytest.raises(ModelError, match=said):
        build_wider(model, find_head(model), 4, softmax=False, again=None, replaces=replaces)


def test_tiny_features_of_an_untrained_network_refuse_no_head():
    """The wider model is measured before it has the weights: a deep one then gives its head nearly nothing."""
    inputs = keras.Input((SIDE, SIDE, 3))
    small = keras.initializers.RandomNormal(stddev=1e-6, seed=0)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, kernel_initializer=small)(inputs))
    for last in (layers.Dense(1, "sigmoid"), layers.Dense(1)):
        model = keras.Model(inputs, last(x))
        build_wider(model, find_head(model), 3, softmax=last.activation is keras.activations.sigmoid, again=None)
        scaled = through(keras.Model(inputs, layers.Dense(1)(x)), lambda value: value * 0.5)
        build_wider(scaled, find_head(scaled), 3, softmax=False, again=None)


@pytest.mark.parametrize(
    ("behind", "kept"),
    [
        (lambda value: value * 5.0, True),
        (lambda value: keras.ops.clip(value, -20, 20), True),
        (lambda value: value + 3.0, False),
        (lambda value: keras.ops.relu(value) - 1.0, False),
    ],
)
def test_a_single_logit_grows_where_two_answer_as_it_does(behind, kept):
    """Measures whether two outputs answer as one did, whatever operation is behind the head."""
    model = trained(bent(None, behind))
    head = find_head(model)
    chances = [Head(task, from_logits=True).probabilities for task in (BINARY, SINGLE_LABEL)]

    def check():
        wider, _ = build_wider(model, head, 4, softmax=False, again=None)
        grow.check_answers(model, head, wider, chances)

    if kept:
        check()
        return
    with pytest.raises(ModelError, match=r"passes further operations behind the layer dense|keep 4 outputs"):
        check()


def test_a_function_builds_the_wider_model_where_the_class_does_not_say_its_size():
    """A model whose configuration lacks the number of outputs is built by the user's function."""
    model = trained(own(4))
    model.sizes = {}
    head = find_head(model)
    with pytest.raises(ModelError, match=r"none of its arguments .* is the number of outputs, 3.*accepts num_classes"):
        build_wider(model, head, 5, softmax=False, again=None)

    def again(count):
        wider = Own(num_classes=count, width=4)
        wider(np.zeros((1, SIDE, SIDE, 3), "float32"))
        return wider

    wider, wider_head = build_wider(model, head, 5, softmax=False, again=again)
    assert wider_head.layer is wider.top
    assert tuple(wider_head.kernel.shape) == (4, 5)
