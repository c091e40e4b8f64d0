"""Writes the Keras 2 layer goldens: tf_keras architectures and their outputs for two inputs.

Run as `python scripts/golden keras2_layers`; needs tf_keras. Each model is stored as its `model_config`, the names and
shapes of its weights, and outputs. The values of the weights are a formula (`inputs.numbers`).
"""

import gzip
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))
import tensorflow as tf
import tf_keras as keras
from inputs import numbers
from tf_keras.src.applications.convnext import LayerScale

K, L = keras, keras.layers
KEPT = 12
"""Number of output values that are stored."""
PICTURE = (6, 6, 3)
TOKENS = (5, 3)


def _one(layer, shape=PICTURE):
    return K.Sequential([K.Input(shape), layer])


def _graph(function, shape=PICTURE):
    inputs = K.Input(shape)
    return K.Model(inputs, function(inputs))


def _base(name=None):
    inputs = K.Input(PICTURE)
    return K.Model(inputs, L.BatchNormalization()(L.Conv2D(4, 3, use_bias=False)(inputs)), name=name)


def _deep():
    return _graph(_base("inner"))


def _two_outputs():
    inputs = K.Input(PICTURE)
    return K.Model(inputs, [L.Conv2D(4, 3)(inputs), L.Conv2D(4, 3)(inputs)])


def _calls(model, *layers):
    x = model.output
    for layer in layers:
        x = layer(x)
    return K.Model(model.input, x)


def _twice(model):
    return _graph(lambda x: L.Dense(3)(L.Flatten()(L.Add()([model(x), model(L.Rescaling(0.5)(x))]))))


def _pair(function, shape=TOKENS):
    return _graph(lambda x: function(x, L.Rescaling(0.5)(x)), shape)


TRANSFER = {
    "pooled": lambda: K.Sequential([_base(), L.GlobalAveragePooling2D(), L.Dense(3)]),
    "flattened": lambda: K.Sequential([_base(), L.Flatten(), L.Dense(3)]),
    "convolved": lambda: K.Sequential([_base(), L.Conv2D(5, 3), L.GlobalMaxPooling2D(), L.Dense(3)]),
    "normalised": lambda: K.Sequential([_base(), L.BatchNormalization(), L.GlobalAveragePooling2D()]),
    "dropped": lambda: K.Sequential([_base(), L.Dropout(0.3), L.GlobalAveragePooling2D(), L.Dense(3)]),
    "two-deep": lambda: K.Sequential([_deep(), L.GlobalAveragePooling2D(), L.Dense(3)]),
    "three-deep": lambda: K.Sequential([K.Sequential([_deep(), L.Conv2D(5, 3)]), L.GlobalAveragePooling2D()]),
    "teachable-machine": lambda: K.Sequential(
        [
            K.Sequential([_base(), L.GlobalAveragePooling2D()]),
            K.Sequential(
                [
                    L.Dense(5, activation="relu", input_shape=(4,)),
                    L.Dense(3, use_bias=False, activation="softmax"),
                ]
            ),
        ]
    ),
    "behind-rescaling": lambda: K.Sequential([L.Rescaling(1 / 255.0, input_shape=PICTURE), _base(), L.Flatten()]),
    "in-a-graph": lambda: _graph(lambda x: L.Dense(3)(L.Flatten()(_deep()(x)))),
    "stack-in-a-graph": lambda: _graph(K.Sequential([_base(), L.Flatten(), L.Dense(3)])),
    "goes-on-a-model": lambda: _calls(_base(), L.Flatten(), L.Dense(3)),
    "goes-on-a-stack": lambda: _calls(K.Sequential([_base(), L.Conv2D(3, 3)]), L.Flatten(), L.Dense(3)),
    "two-outputs-inside": lambda: _graph(lambda x: L.Flatten()(L.Add()(_two_outputs()(x)))),
    "called-twice": lambda: _twice(_base()),
    "stack-called-twice": lambda: _twice(K.Sequential([_base(), L.Conv2D(3, 3)])),
}

PLAIN = {
    "AveragePooling2D": (3, 2, "same"),
    "BatchNormalization": (),
    "Conv2D": (4, 3, 2, "same"),
    "Conv2DTranspose": (4, 3, 2, "same"),
    "Cropping2D": (((1, 2), (0, 1)),),
    "CenterCrop": (4, 4),
    "DepthwiseConv2D": (3, 2, "same", 2),
    "Dropout": (0.3, (None, 1, 1, 3), 3),
    "ELU": (0.5,),
    "Flatten": (),
    "GaussianDropout": (0.2,),
    "GaussianNoise": (0.2,),
    "AlphaDropout": (0.2,),
    "GlobalAveragePooling2D": (),
    "GlobalMaxPooling2D": (),
    "Identity": (),
    "LeakyReLU": (0.2,),
    "Masking": (0.1,),
    "MaxPooling2D": (2,),
    "PReLU": (),
    "Permute": ((2, 1, 3),),
    "RandomBrightness": (0.2,),
    "RandomContrast": (0.2,),
    "RandomFlip": ("horizontal",),
    "RandomRotation": (0.1,),
    "RandomTranslation": (0.1, 0.1),
    "RandomZoom": (0.1,),
    "ReLU": (6.0, 0.1, 0.2),
    "Rescaling": ([0.1, 0.2, 0.3], -1.0),
    "Reshape": ((-1, 3),),
    "Resizing": (4, 4, "nearest"),
    "SeparableConv2D": (4, 3),
    "Softmax": (),
    "SpatialDropout2D": (0.2,),
    "ThresholdedReLU": (0.5,),
    "UnitNormalization": (),
    "UpSampling2D": (2,),
    "ZeroPadding2D": (((0, 1), (0, 1)),),
}
IN_ONE = {
    "AveragePooling1D": (2,),
    "Conv1D": (4, 3),
    "Conv1DTranspose": (4, 3),
    "Cropping1D": (1,),
    "DepthwiseConv1D": (3,),
    "GRU": (3,),
    "GlobalAveragePooling1D": (),
    "GlobalMaxPooling1D": (),
    "LSTM": (3,),
    "MaxPooling1D": (2,),
    "SeparableConv1D": (4, 3),
    "SimpleRNN": (3,),
    "SpatialDropout1D": (0.2,),
    "UpSampling1D": (2,),
    "ZeroPadding1D": (1,),
}
MERGING = (
    "Add",
    "Average",
    "Concatenate",
    "Maximum",
    "Minimum",
    "Multiply",
    "Subtract",
    "Attention",
    "AdditiveAttention",
)
LAYERS = {
    **{name: lambda name=name, args=args: _one(getattr(L, name)(*args)) for name, args in PLAIN.items()},
    **{name: lambda name=name, args=args: _one(getattr(L, name)(*args), TOKENS) for name, args in IN_ONE.items()},
    **{name: lambda name=name: _pair(lambda x, y: getattr(L, name)()([x, y])) for name in MERGING},
    "Dot": lambda: _pair(lambda x, y: L.Dot(axes=(2, 2), normalize=True)([x, y])),
    "MultiHeadAttention": lambda: _pair(lambda x, y: L.MultiHeadAttention(2, 3, output_shape=4)(x, value=y)),
    "Attention with a scale": lambda: _pair(lambda x, y: L.Attention(use_scale=True, dropout=0.1)([x, y])),
    "Activation": lambda: _one(L.Activation(tf.nn.relu6)),
    "ActivityRegularization": lambda: _one(L.ActivityRegularization(0.1, 0.2)),
    "hard_sigmoid": lambda: _one(L.Conv2D(4, 3, activation="hard_sigmoid")),
    "Activation hard_sigmoid": lambda: _one(L.Activation("hard_sigmoid")),
    "LSTM hard_sigmoid": lambda: _one(L.LSTM(3, recurrent_activation="hard_sigmoid"), TOKENS),
    "activation layer": lambda: _one(L.Conv2D(4, 3, activation=L.LeakyReLU(0.2))),
    "BatchNormalization axis": lambda: _one(L.BatchNormalization(axis=[3], scale=False, momentum=0.9)),
    "SyncBatchNormalization": lambda: _one(L.BatchNormalization(synchronized=True)),
    "Bidirectional": lambda: _one(L.Bidirectional(L.LSTM(3, return_sequences=True), "sum"), TOKENS),
    "ConvLSTM2D": lambda: _one(L.ConvLSTM2D(2, 2), (3, 4, 4, 2)),
    "Conv3D": lambda: _one(L.Conv3D(2, 2), (3, 3, 3, 2)),
    "Conv3DTranspose": lambda: _one(L.Conv3DTranspose(2, 2), (2, 2, 2, 2)),
    "MaxPooling3D": lambda: _one(L.MaxPooling3D(2), (4, 4, 4, 2)),
    "SpatialDropout3D": lambda: _one(L.SpatialDropout3D(0.2), (2, 2, 2, 2)),
    "constraints": lambda: _one(
        L.Conv2D(4, 3, groups=1, dilation_rate=2, kernel_constraint=K.constraints.MaxNorm(2), bias_constraint="non_neg")
    ),
    "regularizers": lambda: _one(
        L.Dense(3, kernel_regularizer=K.regularizers.L1L2(0.1, 0.2), bias_regularizer="l2", activity_regularizer="l1")
    ),
    "initializers": lambda: _one(
        L.Dense(3, kernel_initializer=K.initializers.HeNormal(3), bias_initializer=K.initializers.RandomNormal(0.1))
    ),
    "EinsumDense": lambda: _one(L.EinsumDense("abcd,de->abce", (None, None, 5), bias_axes="e")),
    "GRU of before": lambda: _one(L.GRU(3, reset_after=False), TOKENS),
    "GroupNormalization": lambda: _one(L.GroupNormalization(2), (4, 4, 4)),
    "LayerScale": lambda: _one(LayerScale(0.5, 3)),
    "LayerNormalization": lambda: _one(L.LayerNormalization(axis=[1, 2, 3])),
    "Normalization": lambda: _one(L.Normalization()),
    "Normalization given": lambda: _one(L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])),
    "RNN": lambda: _one(L.RNN([L.GRUCell(3), L.SimpleRNNCell(2)]), TOKENS),
    "RepeatVector": lambda: _one(L.RepeatVector(3), (4,)),
    "TimeDistributed": lambda: _one(L.TimeDistributed(K.Sequential([_base(), L.Flatten(), L.Dense(2)])), (2, *PICTURE)),
    "names with slashes": lambda: K.Sequential(
        [K.Input(PICTURE), L.Conv2D(3, 3, name="conv1/conv"), L.BatchNormalization(name="conv1/bn")]
    ),
}

preprocess = {"tf": K.applications.mobilenet_v2, "caffe": K.applications.vgg16, "torch": K.applications.densenet}
OPERATIONS = {
    **{
        f"preprocess_input {name}": lambda module=module: _graph(lambda x: L.Conv2D(3, 3)(module.preprocess_input(x)))
        for name, module in preprocess.items()
    },
    "numbers": lambda: _graph(lambda x: L.Conv2D(3, 3)(1.0 - 2.0 * x / 127.5 + 3.0)),
    "tensors": lambda: _graph(lambda x: (L.Conv2D(3, 1)(x) + x) * x - x),
    "hard swish": lambda: _graph(lambda x: L.Multiply()([x, L.ReLU(6.0)(x + 3.0) * (1.0 / 6.0)])),
    "activations": lambda: _graph(lambda x: tf.nn.softmax(tf.nn.swish(tf.nn.relu6(L.Dense(3)(x))))),
    "mean": lambda: _graph(lambda x: tf.reduce_mean(L.Conv2D(3, 3)(x), axis=[1, 2])),
    "mean of channels": lambda: _graph(lambda x: tf.reduce_mean(x, axis=-1, keepdims=True)),
    "reshape": lambda: _graph(lambda x: L.Dense(3)(tf.reshape(x, (-1, 108)))),
    "concat": lambda: _graph(lambda x: tf.concat([x, L.Conv2D(2, 1)(x)], axis=-1)),
    "slice": lambda: _graph(lambda x: L.Conv2D(3, 3)(x[:, 1:, ::-1, :2])),
    "resize": lambda: _graph(lambda x: L.Conv2D(3, 3)(tf.image.resize(x, (4, 4)))),
    "cast": lambda: _graph(lambda x: tf.cast(x, tf.float32) * 2.0),
}


def described(model):
    """Describes a model as the files store it, after setting its weights by the formula."""
    layers = []
    for layer in model.layers:
        if layer.weights:
            layers.append([layer.name, [[weight.name, list(weight.shape)] for weight in layer.weights]])
            for weight in layer.weights:
                weight.assign(numbers(weight.name, tuple(weight.shape)))
    for layer in model._flatten_layers():
        if isinstance(layer, L.Normalization):
            layer.finalize_state()
    shape = tuple(model.input_shape[1:])
    outputs = model(numbers("inputs", (2, *shape)), training=False).numpy().ravel()
    chosen = outputs[:: max(len(outputs) // KEPT, 1)][:KEPT]
    return {
        "config": {"class_name": type(model).__name__, "config": json.loads(model.to_json())["config"]},
        "weights": layers,
        "input_shape": shape,
        "outputs": [float(f"{value:.7g}") for value in chosen],
    }


def write(root: Path) -> Path:
    """Writes `transfer`, `layers` and `operations`, each a `.json.gz`, and returns their folder.

    The folder is `root/tf_keras-VERSION-layers`.
    """
    folder = root / f"tf_keras-{keras.__version__}-layers"
    folder.mkdir(parents=True)
    for file, models in {"transfer": TRANSFER, "operations": OPERATIONS, "layers": LAYERS}.items():
        found = {}
        for name, make in models.items():
            keras.backend.clear_session()
            model = make()
            found[name] = described(model if model.weights else _calls(model, L.Dense(2)))
        lines = (f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in found.items())
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        (folder / f"{file}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    return folder
