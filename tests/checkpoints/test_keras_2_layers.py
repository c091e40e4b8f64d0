"""Tests that tf_keras architectures compute the same numbers in Keras 3, under either backend."""

import gzip
import json
import sys

import h5py
import keras
import numpy as np
import pytest

from kresume.checkpoints.read import read_checkpoint
from kresume.errors import ModelError
from kresume.models import build, pixels, restore
from tests.helpers.paths import GOLDENS, WRITERS

GOLDEN = next(GOLDENS.glob("tf_keras-*-layers"))
KINDS = {
    file.name.partition(".")[0]: json.loads(gzip.decompress(file.read_bytes())) for file in sorted(GOLDEN.iterdir())
}
CASES = [(kind, name) for kind, models in KINDS.items() for name in models]
KEPT = 12
sys.path.insert(0, str(WRITERS))
from inputs import numbers  # noqa: E402


def written(path, entry, *, version="2.15.0"):
    """Writes the `.h5` that Keras 2 would have written of a golden's architecture and weights."""
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps(entry["config"])
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [layer.encode() for layer, _ in entry["weights"]]
        root.attrs["keras_version"] = version.encode()
        for layer, weights in entry["weights"]:
            group = root.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name, _ in weights]
            for name, shape in weights:
                group[name] = numbers(name, tuple(shape))
    return path


def predicted(model, entry):
    """Returns the output values that a golden stores."""
    outputs = np.ravel(keras.ops.convert_to_numpy(model(numbers("inputs", (2, *entry["input_shape"])), training=False)))
    return outputs[:: max(len(outputs) // KEPT, 1)][:KEPT]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[f"{kind}: {name}" for kind, name in CASES])
def test_a_model_of_keras_2_gives_the_same_numbers(tmp_path, kind, name):
    """A model built from its Keras 2 config and weights predicts as in Keras 2."""
    entry = KINDS[kind][name]
    state = read_checkpoint(written(tmp_path / "model.h5", entry))
    model = build.from_architecture(state.architecture)
    restore.restore(model, state, optimizer=None)
    np.testing.assert_allclose(predicted(model, entry), entry["outputs"], rtol=1e-5, atol=1e-5)
    assert isinstance(model.output_shape, tuple)


def older(value, key=""):
    """Rewrites a config to the form of Keras 2.0 or TensorFlow 1.13.

    These have bare stacks, wrapped lists and types everywhere.
    """
    if isinstance(value, list):
        return [older(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_name" not in value or "config" not in value:
        return {name: older(item, name) for name, item in value.items()}
    name, config = value["class_name"], {name: older(item, name) for name, item in value["config"].items()}
    if name == "BatchNormalization" and isinstance(config["axis"], int):
        config["axis"] = {"class_name": "ListWrapper", "items": [config["axis"]]}
    if key.endswith("initializer"):
        config["dtype"] = "float32"
    if name in {"ELU", "LeakyReLU"}:
        config["alpha"] = {"type": "ndarray", "value": config["alpha"]}
    if name == "Reshape":
        config["target_shape"] = {"class_name": "__tuple__", "items": config["target_shape"]}
    if name == "Sequential":
        first = [item for item in config["layers"] if item["class_name"] == "InputLayer"]
        config = [item for item in config["layers"] if item["class_name"] != "InputLayer"]
        if first and isinstance(config[0]["config"], dict) and "layers" not in config[0]["config"]:
            config[0]["config"]["batch_input_shape"] = first[0]["config"]["batch_input_shape"]
    kept = {key: older(value[key]) for key in ("name", "inbound_nodes") if key in value}
    return {"class_name": {"Functional": "Model"}.get(name, name), "config": config, **kept}


OLD_ENOUGH = sorted(
    name
    for name, entry in {**KINDS["transfer"], **KINDS["layers"]}.items()
    if "EinsumDense" not in name and "Normalization given" not in name
)


HARD = {"BatchNormalization", "ELU", "GRU of before", "LeakyReLU", "Reshape", "RNN", "activation layer", "hard_sigmoid"}


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", OLD_ENOUGH)
def test_the_oldest_form_of_a_config_is_read_as_the_newest(tmp_path, name):
    """The oldest forms of a config are read like the newest, to the same numbers.

    Tried: Sequentials as lists, types inside initializers, arrays and tuples as objects, no modules.
    """
    entry = {**KINDS["transfer"], **KINDS["layers"]}[name]
    state = read_checkpoint(
        written(tmp_path / "model.h5", {**entry, "config": older(entry["config"])}, version="2.1.6")
    )
    model = build.from_architecture(state.architecture)
    restore.restore(model, state, optimizer=None)
    if name in KINDS["transfer"] or name in HARD:  # the others have the same layers and are built and filled elsewhere
        np.testing.assert_allclose(predicted(model, entry), entry["outputs"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("node_def", [dict, json.dumps])
def test_an_operation_of_tensorflow_2_0_becomes_a_rescaling(tmp_path, node_def):
    """A `TensorFlowOpLayer` with its constants by index becomes a Rescaling."""
    entry = json.loads(json.dumps(KINDS["operations"]["preprocess_input tf"]))
    operations = {"math.truediv": "RealDiv", "math.subtract": "Sub"}
    for layer in entry["config"]["config"]["layers"]:
        if layer["class_name"] == "TFOpLambda":
            name, call = layer["config"]["function"], layer["inbound_nodes"][0]
            inside = {"node_def": node_def({"name": "op", "op": operations[name]}), "constants": {"1": call[3]["y"]}}
            layer |= {"class_name": "TensorFlowOpLayer", "inbound_nodes": [[[*call[:3], {}]]]}
            layer["config"] = {"name": layer["name"], "trainable": True, "dtype": "float32", **inside}
    state = read_checkpoint(written(tmp_path / "model.h5", entry))
    model = build.from_architecture(state.architecture)
    restore.restore(model, state, optimizer=None)
    np.testing.assert_allclose(predicted(model, entry), entry["outputs"], rtol=1e-5, atol=1e-5)
    assert pixels.read_convention(model) == "0-255"


@pytest.mark.parametrize("name", ["hard_sigmoid", "LSTM hard_sigmoid"])
def test_a_translated_model_is_saved_for_plain_keras(tmp_path, name):
    """A translated model is saved for plain Keras without any class of ours."""
    entry = KINDS["layers"][name]
    state = read_checkpoint(written(tmp_path / "model.h5", entry))
    model = build.from_architecture(state.architecture)
    restore.restore(model, state, optimizer=None)
    model.save(tmp_path / "model.keras")
    assert "kresume" not in json.dumps(keras.saving.serialize_keras_object(model))
    np.testing.assert_allclose(
        predicted(keras.saving.load_model(tmp_path / "model.keras"), entry), entry["outputs"], rtol=1e-5, atol=1e-5
    )


def test_an_operation_without_a_counterpart_is_named(tmp_path):
    """An operation without a counterpart is an error with its name; the name is never looked up or run."""
    entry = json.loads(json.dumps(KINDS["operations"]["cast"]))
    layer = next(layer for layer in entry["config"]["config"]["layers"] if layer["class_name"] == "TFOpLambda")
    layer["config"]["function"] = "io.write_file"
    state = read_checkpoint(written(tmp_path / "model.h5", entry))
    with pytest.raises(ModelError, match=r"TensorFlow's operation io\.write_file"):
        build.from_architecture(state.architecture)


def test_a_lambda_of_keras_2_is_code_that_only_trust_runs(tmp_path):
    """A Lambda of Keras 2, bytecode with defaults and closure, runs only with `--trust`."""
    from keras.src.utils import python_utils

    code, _, _ = python_utils.func_dump(lambda x: x * 3.0)
    config = {"name": "lambda", "trainable": True, "function": [code, None, None], "function_type": "lambda"}
    config |= {"module": "__main__", "output_shape": None, "output_shape_type": "raw", "arguments": {}}
    entry = json.loads(json.dumps(KINDS["layers"]["hard_sigmoid"]))
    entry["config"]["config"]["layers"].append({"class_name": "Lambda", "config": config})
    state = read_checkpoint(written(tmp_path / "model.h5", entry))
    with pytest.raises(ModelError, match=r"Lambda.*--trust"):
        build.from_architecture(state.architecture)
    model = build.from_architecture(state.architecture, trust=True)
    restore.restore(model, state, optimizer=None)
    np.testing.assert_allclose(predicted(model, entry), 3.0 * np.asarray(entry["outputs"]), rtol=1e-5, atol=1e-5)
