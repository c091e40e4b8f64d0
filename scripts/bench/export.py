"""Speed and size of an exported SavedModel against the Keras model that it was made of.

    python scripts/bench/export.py ../shared/data/signdigits/eval

Both answer the same JPEG files held in memory: the export through `serving_default` on their bytes, the Keras model through
the pipeline that training and `kresume eval` use (decoding in threads, then `predict_on_batch`). One process, both warm, in
turns that change their order. The times are medians; the ratio is the median of export / Keras over the turns (below 1 the
export is faster), its quartiles beside it: on a machine with other work two medians drift apart, a pair does not. The size
is that of the version's folder over the bytes of the weights. Weights are as initialised: speed and size do not depend on them.
"""

import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROUNDS = {1: 300, 32: 20}
MODELS = {"convnet": 64, "applications:MobileNetV2": 96, "applications:MobileNetV2 224": 224}


def main(data: str) -> None:
    """Prints the table."""
    import numpy as np
    import tensorflow as tf

    from kresume.exports.export import export
    from kresume.images import conventions
    from kresume.images.decode import DecodeSpec, decode
    from kresume.models.build import build_model

    classes = sorted(folder.name for folder in Path(data).iterdir() if folder.is_dir())
    files = [
        path.read_bytes() for path in sorted(Path(data).glob("*/*"))[:: max(1, len(list(Path(data).glob("*/*"))) // 64)]
    ]
    pool = ThreadPoolExecutor(os.cpu_count())
    print("| model | batch | Keras and pipeline, ms | exported signature, ms | ratio (quartiles) | size / weights |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for spec, size in MODELS.items():
            model = build_model(spec.partition(" ")[0], state=None, num_classes=len(classes), image_size=(size, size))
            path = Path(name) / f"{spec.replace(':', '-')}.keras"
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

            for count, rounds in ROUNDS.items():
                times: dict[str, list[float]] = {"keras": [], "export": []}
                for turn in range(rounds + 3):
                    batch = [files[(turn + place) % len(files)] for place in range(count)]
                    sides = (("keras", by_keras), ("export", by_export))
                    for side, call in sides if turn % 2 else sides[::-1]:
                        start = time.perf_counter()
                        call(batch)
                        times[side].append(1000 * (time.perf_counter() - start))
                keras_ms, export_ms = (statistics.median(times[side][3:]) for side in ("keras", "export"))
                pairs = [export / keras for export, keras in zip(times["export"][3:], times["keras"][3:], strict=True)]
                low, ratio, high = statistics.quantiles(pairs, n=4)
                line = f"| {spec.removeprefix('applications:')} {size if ' ' not in spec else ''}".rstrip()
                print(
                    f"{line} | {count} | {keras_ms:,.1f} | {export_ms:,.1f} | {ratio:.2f} ({low:.2f}-{high:.2f}) | "
                    f"{result.bytes / weights:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
