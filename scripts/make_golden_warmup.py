"""Writes tests/golden/warmup/prediction_log.bin with TensorFlow Serving's own API package.

Run it when the package changes:

    pip install --no-deps tensorflow-serving-api grpcio
    python scripts/make_golden_warmup.py
"""

import sys
from pathlib import Path

PATH = Path(__file__).parents[1] / "tests" / "golden" / "warmup" / "prediction_log.bin"
CONTENTS = [b"abc", b"de\0f"]


def render() -> bytes:
    """Returns a `PredictionLog` of one request, serialized by the API package."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "flowers"
    request.model_spec.signature_name = "serving_default"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(tf.constant(CONTENTS)))
    log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
    return log.SerializeToString(deterministic=True)


if __name__ == "__main__":
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_bytes(render())
    sys.stderr.write(f"wrote {PATH}\n")
