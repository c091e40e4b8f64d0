"""Writes ONNX files for onnxruntime, through TensorFlow's graph and tf2onnx, under any backend.

The input `images` is `(batch, height, width, 3) float32` in 0..255; the output `scores` sums to 1.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from kresume.errors import ExportError
from kresume.evaluation.served import Prediction
from kresume.exports import plain_graph
from kresume.exports.job import Job
from kresume.exports.samples import Samples
from kresume.models.load import Loaded
from kresume.spelling import option

FILE = "model.onnx"
OPSET = 18


def write(loaded: Loaded, directory: Path, job: Job) -> dict[str, Any]:
    """Writes `model.onnx` and `labels.txt`.

    Raises:
        ExportError: tf2onnx cannot express an operation of the model.
    """
    import onnx

    function = plain_graph.picture_function(loaded)
    try:
        model = _convert(function)
    except Exception as error:  # tf2onnx defines no error class of its own
        raise ExportError(
            f"{option('format', 'onnx')}: tf2onnx cannot convert {loaded.model.name} ({plain_graph.first_line(error)}); "
            f"{option('format', 'saved-model')} and {option('format', 'litert')} can hold it"
        ) from error
    for key, value in plain_graph.metadata(loaded).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    onnx.save(model, str(directory / FILE))
    return {**plain_graph.describe(loaded, directory, FILE), "opset": OPSET}


def _convert(function: Any) -> Any:
    """Converts a traced function to a `ModelProto`."""
    import logging

    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tf2onnx uses old numpy and protobuf names
        import tf2onnx

        logging.getLogger("tf2onnx").setLevel(logging.ERROR)
        patch_tf2onnx()
        model, _ = tf2onnx.convert.from_function(
            function, function.input_signature, opset=OPSET, custom_op_handlers={"Erfc": (_erfc, [])}
        )
    return _with_constants(model, function.get_concrete_function())


def _with_constants(model: Any, concrete: Any) -> Any:
    """Adds the tensors that layers hold outside of variables, such as Normalization's mean.

    tf2onnx treats them as inputs.
    """
    import onnx
    import tensorflow as tf

    captured = concrete.captured_inputs
    tensors = concrete.inputs[len(concrete.inputs) - len(captured) :]
    values = {tensor.name: value for tensor, value in zip(tensors, captured, strict=True) if value.dtype != tf.resource}
    kept = [given for given in model.graph.input if given.name not in values]
    missing = {given.name for given in model.graph.input} & set(values)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(values[name].numpy(), name) for name in sorted(missing))
    return model


def _erfc(context: Any, node: Any, name: str, arguments: Any) -> Any:
    """Converts Erfc(x) to 1 - Erf(x): ONNX has no Erfc, which the exact gelu uses."""
    del name, arguments
    one = context.make_const(f"{node.name}_one", np.array(1.0, np.float32)).output[0]
    erf = context.make_node("Erf", [node.input[0]], name=f"{node.name}_erf").output[0]
    shapes, dtypes = node.output_shapes, node.output_dtypes
    context.remove_node(node.name)
    return context.make_node("Sub", [one, erf], outputs=[node.output[0]], name=node.name, shapes=shapes, dtypes=dtypes)


def predict(directory: Path, facts: dict[str, Any], samples: Samples) -> Prediction:
    """Runs the samples through onnxruntime."""
    return plain_graph.predict("onnx", directory, facts, samples)
