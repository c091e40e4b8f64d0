"""Tests which values of a script are compared after a restart, and the lines on those that differ; trains nothing."""

import json
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest

from kresume.drop_in import code_changes, code_digest, script_record
from kresume.models import introspection
from tests.drop_in import helper_of_script
from tests.helpers.script_records import load, record

pytestmark = [
    pytest.mark.one_backend(trains=True),
    pytest.mark.filterwarnings("ignore:.build... was called on layer:UserWarning"),
]
KINDS = (Path(__file__).parent / "kinds_of_values.py").read_text(encoding="utf-8")
EDITED, DIFFERS = f"{code_changes.EDITED}: ", f"{code_changes.DIFFERS}: "
SAME_CODE = "Your code is the same: it draws or reads this at each start, and a fixed seed keeps what it draws"
EITHER = "undo what you changed; a fixed seed keeps what the script draws at each start"


def of_kinds(source=KINDS, *, loss=0, **options):
    keras.utils.clear_session()
    return record(load(source).make(loss), **options)


@pytest.fixture(scope="module")
def before():
    """Returns the records of the unchanged script by its loss."""
    return [of_kinds(loss=loss) for loss in range(3)]


VALUES = {
    "dataclass": ("alpha: float = 0.3", "alpha: float = 0.9", "train_step.CONFIG.alpha 0.3 -> 0.9. "),
    "dataclass with slots": ("alpha: float = 0.4", "alpha: float = 0.9", "train_step.SLOTTED.alpha 0.4 -> 0.9. "),
    "dataclass of a model": ("Config(0.35)", "Config(0.9)", "Own: config.alpha 0.35 -> 0.9. "),
    "another member": ("Mode.SOFT,", "Mode.HARD,", "train_step.MODE Mode.SOFT -> Mode.HARD. "),
    "value of a member": ("SOFT = 0.1", "SOFT = 0.2", "train_step.MODE.value 0.1 -> 0.2. "),
    "number that is a member": ("Level.LOW,", "Level.HIGH,", "train_step.LEVEL Level.LOW -> Level.HIGH. "),
    "class of constants": ("width = 5", "width = 8", "train_step.Constants.width 5 -> 8. "),
    "attribute of an object": ("random(), 0.75, 0", "random(), 0.9, 0", "PLAIN.own 0.75 -> 0.9. "),
    "attribute of its class": ("shared = 0.25", "shared = 0.9", "train_step.PLAIN.shared 0.25 -> 0.9. "),
    "method of an object": ("value * 1.5", "value * 1.6", "the code of train_step.PLAIN.scaled. "),
    "namedtuple": ("Point(1, 2)", "Point(1, 9)", "train_step.POINT.y 2 -> 9. "),
    "dictionary": ('"beta": 0.5', '"beta": 0.9', "train_step.CFG[beta] 0.5 -> 0.9. "),
    "nested dictionary": ('"inner": 7', '"inner": 8', "CFG[nested][inner] 7 -> 8. "),
    "removed key": ("0.2, 1: 0.3}", "0.2}", "train_step.TABLE[1] 0.3 -> none. "),
    "added key": ("1: 0.3}", "1: 0.3, 2: 0.4}", "train_step.TABLE[2] none -> 0.4. "),
    "list": ("[0.1, 0.2]", "[0.1, 0.9]", "train_step.NUMBERS [0.1, 0.2] -> [0.1, 0.9]. "),
    "tuple": ("(3, 4)", "(3, 4, 5)", "train_step.PAIR [3, 4] -> [3, 4, 5]. "),
    "text": (', "mean", {', ', "sum", {', "train_step.TEXT mean -> sum. "),
    "set": (', "west"}', ', "east"}', "train_step.CHOSEN ['north', 'south', 'west'] -> ['east', 'north', 'south']. "),
    "small array": ("np.array([1.0, 2.0])", "np.array([1.0, 3.0])", "train_step.SMALL [1.0, 2.0] -> [1.0, 3.0]. "),
    "large array": ("np.arange(1000.0)", "np.arange(1000.0) + 1", "train_step.LARGE.mean 499.5 -> 500.5. "),
    "number of NumPy": ("np.float32(0.125)", "np.float32(0.25)", "train_step.RATIO 0.125 -> 0.25. "),
    "tensor": ("convert_to_tensor(0.95)", "convert_to_tensor(0.9)", "train_step.TENSOR 0.95 -> 0.9. "),
    "namespace": ("tau=0.6", "tau=0.9", "train_step.SPACE.tau 0.6 -> 0.9. "),
    "closure": ("make_inner(1.75)", "make_inner(1.8)", "train_step.INNER.factor 1.75 -> 1.8. "),
    "default argument": ("power=2", "power=3", "train_step.INNER.power 2 -> 3. "),
    "dictionary as default": ('"key": 1.25', '"key": 1.5', "train_step.INNER.table[key] 1.25 -> 1.5. "),
    "class attribute": ("rate = 0.15", "rate = 0.2", "Own: rate 0.15 -> 0.2. "),
    "dictionary of a model": ('"drop": 0.45', '"drop": 0.5', "Own: options[drop] 0.45 -> 0.5. "),
    "property": ("self.rate * 2", "self.rate * 3", "the code of doubled. "),
    "static method": ("value / 2", "value / 3", "the code of halved. "),
    "object that is a loss": ("Callable(2.5)", "Callable(2.6)", "loss.gamma 2.5 -> 2.6. "),
    "code of an object that is a loss": ("self.gamma + 1.0", "self.gamma + 2.0", "the code of loss.__call__. "),
}  # fmt: skip
UNREAD = {
    "field": ("no code reads this", "nor this"),
    "key": ('"anything"', '"else"'),
    "path": ("/tmp/out-1", "/tmp/out-2"),
    "attribute of a class": ("unread = 6", "unread = 7"),
    "attribute": ("unread=1", "unread=2"),
    "counter": ("(0.95), {}, 0", "(0.95), {}, 0\nSPARE = 1"),
}


@pytest.mark.parametrize("name", VALUES)
def test_another_value_is_told(before, name):
    """Of these only numbers of functions were compared."""
    old, new, words = VALUES[name]
    assert old in KINDS
    [line] = code_changes.message(before[0], of_kinds(KINDS.replace(old, new, 1)))
    assert words in line
    assert line.startswith(EDITED if "the code of" in words else DIFFERS)


def test_values_of_losses_in_partials_are_told(before):
    """Keywords of a `functools.partial` were no parts of its record unless they were numbers."""
    [line] = code_changes.message(before[1], of_kinds(KINDS.replace('"first": 0.55', '"first": 0.6'), loss=1))
    assert "loss.weights[first] 0.55 -> 0.6. " in line
    [line] = code_changes.message(before[2], of_kinds(KINDS.replace("Callable(3.5)", "Callable(3.6)"), loss=2))
    assert "loss.gamma 3.5 -> 3.6. " in line


def test_values_of_a_helper_module_are_told(before, monkeypatch):
    """It is imported by the script, and its constants and functions are read as its attributes, or by their names."""
    monkeypatch.setattr(helper_of_script, "ALPHA", 0.7)
    monkeypatch.setattr(helper_of_script, "IMPORTED", 0.8)
    monkeypatch.setitem(helper_of_script.SETTINGS, "depth", 10)
    monkeypatch.setattr(helper_of_script, "UNREAD", 2)
    monkeypatch.setitem(helper_of_script.SETTINGS, "unread", 2)
    [line] = code_changes.message(before[0], of_kinds())
    assert "train_step.IMPORTED 0.85 -> 0.8, " in line
    assert "train_step.helper_of_script.ALPHA 0.65 -> 0.7, " in line
    assert "train_step.helper_of_script.SETTINGS[depth] 9 -> 10. " in line
    monkeypatch.undo()
    other = load("def scaled(value):\n    return value * 2.0")
    monkeypatch.setattr(helper_of_script, "scaled", other.scaled)
    [line] = code_changes.message(before[0], of_kinds())
    assert "the code of train_step.helper_of_script.scaled" in line


@pytest.mark.parametrize("name", UNREAD)
def test_a_value_that_no_code_uses_is_not_told(before, name):
    """Of an object or a dictionary only what the code names is compared, and each start makes its objects anew."""
    old, new = UNREAD[name]
    assert old in KINDS
    assert code_changes.message(before[0], of_kinds(KINDS.replace(old, new, 1))) == []


def test_what_the_code_counts_is_not_told(before, monkeypatch):
    """An earlier fit of the process may have counted, and a restart leaves that fit out if it had ended."""
    counted = KINDS.replace("{}, 0", "{'last': 1}, 7").replace("= gamma, 0,", "= gamma, 5,")
    counted = counted.replace('{"calls": 0}', '{"calls": 3}').replace('"drop": 0.45}, []', '"drop": 0.45}, [1, 1]')
    counted = counted.replace("0.75, 0", "0.75, 8")
    monkeypatch.setattr(helper_of_script, "COUNT", 6)
    later = of_kinds(counted)
    assert code_changes.message(later, before[0]) == []
    assert code_changes.message(before[0], later) == []


PRIVATE = """
import os
from os import environ
TOKEN, KEY, OPTIONS = os.environ["SLACK_TOKEN"], environ["JOB_KEY"], {"password": "sesame", "num_tokens": 7}
class Lazy(dict):
    def __len__(self):
        raise RuntimeError("not now")
LAZY, RATE = Lazy(a=1), 0.25
def loss(y_true, y_pred):
    return y_pred * RATE + len(TOKEN + KEY + environ["JOB_KEY"]) + OPTIONS["num_tokens"] + len(OPTIONS["password"]) + LAZY["a"]
"""


def test_secrets_are_not_in_a_backup_and_an_object_that_raises_hides_no_other(monkeypatch):
    """Texts of the environment and those with telling names; a backup may be in a bucket that others read."""
    monkeypatch.setenv("SLACK_TOKEN", "xoxb-of-slack")
    monkeypatch.setenv("JOB_KEY", "mistletoe")
    found = record(compiled(load(PRIVATE).loss))
    text = json.dumps(found)
    assert not any(secret in text for secret in ("xoxb", "mistletoe", "sesame"))
    assert found["compile"]["loss.RATE"] == 0.25
    assert found["compile"]["loss.OPTIONS[num_tokens]"] == 7


def test_the_names_that_code_writes_are_found():
    """Reading a part of a value, or writing a variable of its own, is no change of it."""
    source = """
TABLE, STATE, SEEN, COUNT, OTHER, OBJECT, READ, SHADOWED = {}, {}, [], 0, {}, None, {}, {}
def loss(y, rows):
    rows[0] = READ["x"]
    STATE["n"]["m"] += 1
    SEEN.append(y)
    return TABLE[y]
class Hook:
    def on_epoch_end(self):
        global COUNT
        COUNT += 1
        OBJECT.alpha = 1
        SHADOWED = {}
        SHADOWED["x"] = READ.get("x")
"""
    assert introspection.written_by(load(source).loss) == {"rows", "STATE", "SEEN", "COUNT", "OBJECT"}


def compiled(loss="mse", **given):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("sgd", loss, **given)
    return model


def lines(old, new, **options):
    """Returns the lines about two values of `class_weight` or `sample_weight`."""
    name = "class_weight" if isinstance(old, dict) else "sample_weight"
    one, other = (record(compiled(), {name: value}, **options) for value in (old, new))
    return code_changes.message(one, other)


def test_removed_and_added_classes_are_told():
    """Only weights of classes that both have were compared."""
    assert f"{DIFFERS}class_weight[2] 3 -> none. " in lines({0: 1.0, 2: 3.0}, {0: 1.0})[0]
    assert f"{DIFFERS}class_weight[2] none -> 3. " in lines({0: 1.0}, {0: 1.0, 2: 3.0})[0]
    assert f"{DIFFERS}class_weight[1] 1 -> 2. " in lines({np.int64(1): 1.0}, {np.int64(1): 2.0})[0]
    assert lines({0: 1.0, 1: 2.0}, {1: np.float32(2.0), 0: 1}) == []


def test_what_a_script_draws_is_not_called_an_edit():
    """It said "changed in the script ... change it back" of an unseeded shuffle, which nobody had edited."""
    one, other = np.array([1.0, 2.0, 3.0]), np.array([3.0, 1.0, 2.0])
    [line] = lines(one, other)
    assert line.startswith(
        f"{DIFFERS}sample_weight [1.0, 2.0, 3.0] -> [3.0, 1.0, 2.0]. It takes effect from this step on, "
    )
    assert EITHER in line
    [line] = lines(one, other, files="same")
    assert SAME_CODE in line
    for code in (line, *lines({0: 1.1}, {0: 1.2})):
        assert "change it back" not in code
    [line] = code_changes.message(record(compiled("mse"), files="a"), record(compiled("mae"), files="b"))
    assert EITHER in line


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (0.0, 2.9802322e-08, True),
        (5.9604645e-08, -1.1920929e-07, True),
        (float(np.float32(0.1)), 0.1, True),
        (1e-8, 1e-7, False),
        (0.0, 1e-8, False),
        (float(np.float32(1e-8)), float(np.float32(1e-7)), False),
        (0.1, 0.1001, False),
        (1.234567e-5, 1.434567e-5, False),
    ],
)
def test_rounding_near_zero_is_no_difference(old, new, same):
    """Sums of float32 that cancel leave up to some 1e-7; a small number that was written by hand has few digits."""
    assert (lines({0: old}, {0: new}) == []) == same
    assert (lines({0: old, 1: 1.0}, {0: new, 1: 1.0}) == []) == same


def test_rounding_of_the_mean_of_an_array_is_no_difference():
    values = np.random.default_rng(0).normal(size=1000) * 50
    assert lines(values - values.mean(), values - values.mean() + 1e-6) == []
    assert lines(values - values.mean(), values - values.mean() + 1e-2) != []
    assert lines(np.array([0.0, 100.0]), np.array([3.1234567e-6, 100.0])) == []


def test_the_files_of_the_code_are_known(tmp_path, monkeypatch):
    """Equal files mean that nothing was edited. A notebook has none."""
    path = tmp_path / "of_user.py"
    path.write_text("x = 1")
    module = types.ModuleType("of_user")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "of_user", module)
    main = types.ModuleType("__main__")
    main.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "__main__", main)
    # Modules of other tests may have no file any more.
    monkeypatch.setattr(code_digest, "is_users_module", lambda found: found is module)
    digest = script_record._files()
    assert digest is not None
    assert script_record._files() == digest
    path.write_text("x = 2")
    assert script_record._files() != digest
    path.unlink()
    assert script_record._files() is None
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    assert script_record._files() is None


def test_objects_that_hold_each_other_are_described():
    """They were not looked into before."""
    source = """
class Node:
    def __init__(self):
        self.parts, self.a, self.b, self.c, self.d, self.e = {}, self, self, self, self, self
    def run(self, x):
        return NODE.run(x) + self.a.b.c.d.e.x
NODE = Node()
NODE.parts["node"] = NODE
def loss(y_true, y_pred):
    return NODE.run(y_pred) + NODE.parts["node"].a
"""
    found = record(compiled(load(source).loss))
    assert "loss.NODE.run.code" in found["compile"]
    assert len(json.dumps(found)) < 1_000_000


CALLBACK = """
import keras
CFG = {"from": 2, "unread": 1}
class Lower(keras.callbacks.Callback):
    def __init__(self, factor):
        super().__init__()
        self.factor, self.seen, self.total = factor, [], 0.0
    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(epoch)
        self.total += 1
        if epoch > CFG["from"] and epoch < self.params["epochs"]:
            self.model.optimizer.learning_rate = self.model.optimizer.learning_rate * self.factor
def schedule(epoch, rate):
    return rate * 0.5
def callbacks():
    made = [Lower(0.5), Lower(0.25), keras.callbacks.LearningRateScheduler(schedule)]
    for each in made:
        each.set_params({"epochs": 3})
    return made
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Lower(0.5)", "Lower(0.6)", f"{DIFFERS}callbacks.Lower.factor 0.5 -> 0.6. "),
        ("Lower(0.25)", "Lower(0.3)", f"{DIFFERS}callbacks.Lower(2).factor 0.25 -> 0.3. "),
        ('{"from": 2', '{"from": 3', f"{DIFFERS}callbacks.Lower.on_epoch_end.CFG[from] 2 -> 3. "),
        ("+= 1", "+= 2", f"{EDITED}the code of callbacks.Lower.on_epoch_end. "),
        ("rate * 0.5", "rate * 0.6", f"{EDITED}the code of callbacks.LearningRateScheduler.schedule. "),
        ('"epochs": 3}', '"epochs": 9}', ""),
        ('"unread": 1', '"unread": 2', ""),
    ],
)
def test_other_code_of_callbacks_is_told(old, new, words):
    """A schedule of the user's, or a callback that lowers the rate, was not compared at all."""
    assert old in CALLBACK
    one, other = (
        record(compiled(), callbacks=load(text).callbacks()) for text in (CALLBACK, CALLBACK.replace(old, new))
    )
    told = code_changes.message(one, other)
    assert len(told) == bool(words)
    assert all(words in line and "unless the callback acts on the training" in line for line in told)


def test_other_code_is_told_of_a_model_that_an_earlier_fit_has_trained(before):
    """Training changes values, not code."""
    edited = of_kinds(KINDS.replace("value / 2", "value / 3").replace("alpha: float = 0.3", "alpha: float = 0.9"))
    [line] = code_changes.message({**before[0], "used": True}, edited)
    assert f"{EDITED}Own: the code of halved. " in line


def test_code_that_names_another_key_adds_none():
    """The dictionary has the key in both; only the code is another."""
    source = 'CFG = {"alpha": 1.0, "gamma": 2.0}\ndef loss(y_true, y_pred):\n    return y_pred * CFG["alpha"]'
    edited = source + ' * CFG["gamma"]'
    one, other = (record(compiled(load(text).loss)) for text in (source, edited))
    [line] = code_changes.message(one, other)
    assert line.startswith(f"{EDITED}the code of loss. ")
