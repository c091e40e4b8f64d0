#!/usr/bin/env bash
# Runs TensorFlow Serving's container on an export and compares its answers (REST, gRPC) with `kresume eval`.
#
#   scripts/serving_smoke.sh runs/2-signs serving/signs picture.jpg
#
# Arguments: the run, the folder that it was exported to, and a picture. Needs Docker; without it the test is skipped
# and says so. gRPC needs `pip install 'kresume[serving]'`; without it gRPC is skipped, and a line says so.
# SERVER=host uses a running server instead of starting one; it must serve REST on port 8501 and gRPC on port 8500.
set -euo pipefail

if [ $# -ne 3 ]; then
  sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//'
  exit 2
fi
run=$1 folder=$(cd "$2" && pwd) picture=$3
name=$(sed -n 's/^ *name: "\(.*\)"$/\1/p' "$folder/models.config")
host=${SERVER:-}

if [ -z "$host" ]; then
  if ! command -v docker > /dev/null; then
    echo "serving smoke test: skipped, there is no docker here"
    exit 0
  fi
  if ! docker info > /dev/null 2>&1; then
    echo "serving smoke test: skipped, the docker daemon does not answer (docker info says why)"
    exit 0
  fi
  host=127.0.0.1
  container=$(docker run --detach --rm --publish 8500:8500 --publish 8501:8501 \
    --volume "$folder:/models/$name:ro" tensorflow/serving \
    --model_config_file="/models/$name/models.config" \
    --enable_batching=true --batching_parameters_file="/models/$name/batching.config")
  trap 'docker logs --tail 20 "$container" || true; docker stop "$container" > /dev/null || true' EXIT
fi

python3 - "$host" "$name" "$picture" "$run" << 'PYTHON'
import base64
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

host, name, picture, run = sys.argv[1:]
content = Path(picture).read_bytes()
url = f"http://{host}:8501/v1/models/{name}"

deadline = time.monotonic() + 120
while True:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            state = json.load(answer)["model_version_status"][0]["state"]
        if state == "AVAILABLE":
            break
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        state = str(error)
    if time.monotonic() > deadline:
        sys.exit(f"serving smoke test: FAILED, {url} is not available after 120 s: {state}")
    time.sleep(1)

body = json.dumps({"instances": [{"image_bytes": {"b64": base64.b64encode(content).decode()}}]}).encode()
with urllib.request.urlopen(f"{url}:predict", body, timeout=60) as answer:
    rest = json.load(answer)["predictions"][0]
label, score = rest["labels"][0], max(rest["scores"])
print(f"REST: {label} ({score:.6f})")

try:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
except ImportError as error:
    print(f"gRPC: skipped, {error.name} is not installed (pip install 'kresume[serving]')")
else:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, "serving_default"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(tf.constant([content])))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"{host}:8500"))
    outputs = stub.Predict(request, 60).outputs
    grpc_label = tf.make_ndarray(outputs["labels"])[0, 0].decode()
    grpc_score = float(tf.make_ndarray(outputs["scores"])[0].max())
    print(f"gRPC: {grpc_label} ({grpc_score:.6f})")
    if grpc_label != label or abs(grpc_score - score) > 1e-4:
        sys.exit("serving smoke test: FAILED, REST and gRPC differ")

# The picture alone is stored under the class that the server chose: kresume agrees if its accuracy is 1, and its loss
# is -log(score).
with tempfile.TemporaryDirectory() as folder:
    place = Path(folder) / label
    place.mkdir()
    shutil.copy(picture, place)
    command = [sys.executable, "-m", "kresume", "eval", run, "--data", folder, "--cache", "off", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
if done.returncode:
    sys.exit(f"serving smoke test: FAILED, kresume eval says: {done.stderr.strip()}")
facts = json.loads(done.stdout)["all"]
expected = math.exp(-facts["loss"])
print(f"eval: {label if facts['accuracy'] == 1 else 'another class'} ({expected:.6f})")
if facts["accuracy"] != 1 or abs(expected - score) > 1e-3:
    sys.exit("serving smoke test: FAILED, the server and kresume eval differ")
print("serving smoke test: passed")
PYTHON
