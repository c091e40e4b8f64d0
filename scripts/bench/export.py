"""Measures speed and size of an exported SavedModel against its Keras model.

    python scripts/bench/export.py ../shared/data/signdigits/eval

Takes about 4 minutes on 2 cores; --quick about 2.

Both predict on the same JPEG files, held in memory. The export gets their bytes through `serving_default`. The Keras
model gets them through the pipeline that training and `kresume eval` use (decoding in threads, then
`predict_on_batch`). Both run in one process, are warm and take turns. A pair is one request to each; --pairs has no
effect here. A ratio below 1 means that the export is faster. The size is that of the version's folder over the bytes of
the weights. The weights are as initialised: speed and size do not depend on them.
"""

import argparse
import itertools
import os
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pairs

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

REQUESTS = {1: 300, 32: 20}
"""Number of pairs of requests, by the number of images in a request."""
MODELS = {"convnet": 64, "applications:MobileNetV2": 96, "applications:MobileNetV2 224": 224}


def main() -> None:
    """Prints the table."""
    made = pairs.parser(__doc__, "a tenth of the requests")
    made.add_argument("data", help="a folder with one folder of pictures per class")
    asked = pairs.parse(made)
    data = asked.data
    import numpy as np
    import tensorflow as tf

    from kresume.exports.export import export
    from kresume.images import conventions
    from kresume.images.decode import decode
    from kresume.models.build import build_model
    from kresume.values.decode_spec import DecodeSpec

    classes = sorted(folder.name for folder in Path(data).iterdir() if folder.is_dir())
    files = [
        path.read_bytes() for path in sorted(Path(data).glob("*/*"))[:: max(1, len(list(Path(data).glob("*/*"))) // 64)]
    ]
    pool = ThreadPoolExecutor(os.cpu_count())
    busy, rows = pairs.Busy(), []
    with tempfile.TemporaryDirectory() as name:
        for spec, size in MODELS.items():
            model = build_model(spec.partition(" ")[0], state=None, num_classes=len(classes), image_size=(size, size))
            path = Path(name) / f"{re.sub('[: ]', '-', spec)}.keras"
            model.save(path)
            result = export(path, Path(name) / path.stem, classes=classes, data=data)
            weights = sum(int(np.prod(w.shape)) * 4 for w in model.weights)
            signature = tf.saved_model.load(result.path).signatures["serving_default"]
            decoding = DecodeSpec(size, size)
            to_model = conventions.to_model_function("0-255")

            def by_keras(batch: list[bytes], model=model, decoding=decoding, to_model=to_model) -> object:
                pictures = np.stack(list(pool.map(lambda data: decode(data, decoding), batch)))
                return model.predict_on_batch(np.asarray(to_model(pictures)))

            def by_export(batch: list[bytes], signature=signature) -> object:
                return signature(image_bytes=tf.constant(batch))["scores"].numpy()

            for count, rounds in REQUESTS.items():
                turns = itertools.count()

                def answered(call: Callable[[list[bytes]], object], count=count, turns=turns) -> float:
                    turn = next(turns) // 2  # both members of a pair get the same files
                    batch = [files[(turn + index) % len(files)] for index in range(count)]
                    start = time.perf_counter()
                    call(batch)
                    return 1000 * (time.perf_counter() - start)

                busy.wait(asked.wait)  # once per block: a single request takes milliseconds
                block = argparse.Namespace(pairs=3 + (rounds // 10 if asked.quick else rounds), wait=None)
                measured = pairs.measure(block, partial(answered, by_export), partial(answered, by_keras))[3:]
                own, plain = pairs.medians(measured)
                cells = [f"{plain:,.1f}", f"{own:,.1f}", pairs.ratio(measured), f"{result.bytes / weights:.2f}"]
                rows.append([f"{spec.removeprefix('applications:').partition(' ')[0]} {size}", str(count), *cells])
    columns = [
        "model",
        "batch",
        "Keras and pipeline, ms",
        "exported signature, ms",
        "ratio (quartiles)",
        "size / weights",
    ]
    pairs.table(columns, rows, busy)


if __name__ == "__main__":
    main()
