"""Measures input images per second against Keras, PyTorch and Grain; seeking; a large manifest.

    python scripts/bench/images.py [--images 1600] [--rows 1000000]
    python scripts/bench/images.py --images 0 --rows 10000000     # the manifest alone

Takes about 12 minutes on 2 cores; --quick about 2.

The JPEGs are about 450x330 and are resized to 160x160. Each contender runs in its own process, one after another. A
round is one process of each contender. The ratio compares with Keras in the same round; the order of the contenders is
reversed in every second round. `first` is a pass over files that the page cache does not hold (dropped by
posix_fadvise). `later` is the three passes after it, each with a new iterator where the contender's dataset is finite,
as in `fit`. The JPEGs are written to a temporary folder: smooth shapes with texture, quality 85, sizes from 440x322 to
460x338. Graphs are traced before the clock starts: ours on one image, Keras's when its dataset is made. Needs `pip
install grain torch` for the peers; the output names those that are not installed. To reach: 1.0 and 10.
"""

import importlib.util
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import pairs

SIZE, BATCH = 160, 32

COMMON = """
import json, os, sys, time
LATER = 3
from pathlib import Path
folder, size, batch, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
files = sorted(Path(folder).rglob("*.jpg"))
count = len(files)
def drop():
    os.sync()
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
def passes(iterate):
    drop()
    first = timed(iterate)
    later = timed(lambda: [iterate() for _ in range(LATER)])
    print(json.dumps({"first": count / first, "later": LATER * count / later}))
"""

KERAS = """
import keras, tensorflow as tf
data = keras.utils.image_dataset_from_directory(folder, image_size=(size, size), batch_size=batch, seed=0, verbose=False)
CACHE
data = data.prefetch(4)
def iterate():
    for images, labels in data:
        pass
passes(iterate)
"""

TORCH = """
import numpy as np, torch
from PIL import Image
class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return count
    def __getitem__(self, index):
        with Image.open(files[index]) as image:
            return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), np.float32)
workers = os.cpu_count()
loader = torch.utils.data.DataLoader(Pictures(), batch, shuffle=True, num_workers=workers, persistent_workers=True)
def iterate():
    for images in loader:
        pass
passes(iterate)
"""

GRAIN = """
import grain, numpy as np
from PIL import Image
def load(index):
    with Image.open(files[index]) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), np.float32)
data = grain.MapDataset.range(count).shuffle(seed=0).map(load).batch(batch)
def iterate():
    for images in data.to_iter_dataset(grain.ReadOptions(num_threads=2 * os.cpu_count(), prefetch_buffer_size=8)):
        pass
passes(iterate)
"""

OURS = """
import tensorflow as tf
from kresume.images import conventions, merging, pipeline
from kresume.images.cache import Cache
from kresume.values.decode_spec import DecodeSpec
from kresume.images.order import Order
from kresume.images.prepare import prepare
from kresume.images.reader import PictureReader
from kresume.images.sources import list_images
from kresume.reporter import Reporter
quiet, spec = Reporter(quiet=True), DecodeSpec(size, size)
prepare(list_images([folder], quiet).files[:1], spec, None, quiet)
drop()
cache = Cache.open(spec, Path(work))
prepared = []
first = timed(lambda: prepared.append(prepare(list_images([folder], quiet).files, spec, cache, quiet)))
again = timed(lambda: prepare(list_images([folder], quiet).files, spec, cache, quiet))
classes = sorted({image.found.label for image in prepared[0].images})
table = merging.merge(None, prepared[0], None, None, classes=classes, val_split=None, generation=0).manifest
rows = table.train_rows()
reader = PictureReader(table, spec, cache)
order = Order(0, len(rows), batch)
def dataset(step):
    return pipeline.training_dataset(
        reader, rows, table.labels[rows], order, start_step=step, image_size=(size, size),
        pixels=conventions.to_model_function("0-255"), augment=None)
def epochs(number):
    for images, labels in dataset(0).take(number * count // batch):
        pass
epochs(1)
def first_batch(step):
    return timed(lambda: next(iter(dataset(step))))
first_batch(0), first_batch(10**6)
seeks = sorted((first_batch(0), first_batch(10**6)) for _ in range(15))
print(json.dumps({"first": count / first, "later": LATER * count / timed(lambda: epochs(LATER)), "rescan": count / again,
    "seek 0": sorted(a for a, _ in seeks)[7], "seek 10^6": sorted(b for _, b in seeks)[7]}))
"""

RECORDED = """
import hashlib, json, resource, sys, time
from pathlib import Path
import numpy as np, pyarrow as pa
from kresume.images import merging
from kresume.images.manifest import Manifest, schema
from kresume.images.mixing import make_order
from kresume.images.prepare import Image, Prepared
from kresume.images.sources import Facts, Found
path, make, n = Path(sys.argv[1]), sys.argv[2] == "make", int(sys.argv[3])
rng = np.random.default_rng(0)

def rows_of(first, last):
    count, rows = last - first, range(first, last)
    shades = np.kron(rng.integers(0, 256, (count // 4, 4, 4)).astype(np.int16), np.ones((2, 2), np.int16))
    noise = rng.integers(-20, 21, (count, 8, 8))
    thumbs = np.clip(shades[rng.integers(0, len(shades), count)] + noise, 0, 255).astype(np.uint8)
    bits = np.packbits((thumbs < np.roll(thumbs, 1, axis=2)).reshape(count, 64), axis=1).view(">u8").ravel()
    columns = {
        "sha256": [f"{row * (2**256 // n) + row:064x}" for row in rows],  # a manifest is sorted by it
        "path": [f"/data/images/class-{row % 100:03d}/image-{row:08d}.jpg" for row in rows],
        "label": [f"class-{row % 100:03d}" for row in rows], "source": ["/data/images"] * count, "origin": np.zeros(count),
        "side": np.where(rng.random(count) < 0.1, "val", "train").tolist(), "width": np.full(count, 450),
        "height": np.full(count, 330), "bytes": rng.integers(20_000, 60_000, count),
        "mtime_ns": rng.integers(0, 2**60, count), "format": ["JPEG"] * count, "phash": bits.astype(np.uint64),
        "offset": np.zeros(count), "length": np.full(count, -1), "coding": [""] * count, "member": [""] * count,
        "extra": [""] * count, "thumb": [thumb.tobytes() for thumb in thumbs], "seen": np.zeros(count, bool)}
    return pa.table([pa.array(columns[field.name]).cast(field.type) for field in schema()], schema=schema())

if make:
    part = min(n, 500_000)  # all at once would be Python objects of a kilobyte each
    table = pa.concat_tables([rows_of(first, min(first + part, n)) for first in range(0, n, part)])
    Manifest.from_table(table, tuple(f"class-{row:03d}" for row in range(100))).write(path)
    sys.exit()
start = time.perf_counter()
known = Manifest.read(path)
read = time.perf_counter() - start
thumbs, hashes = known.table.column("thumb"), known.table.column("phash")
images = []
for row in range(10_000):  # half of them near a recorded image
    of = int(rng.integers(n))
    thumb = thumbs[of].as_py() if row % 2 else rng.integers(0, 256, 64, dtype=np.uint8).tobytes()
    facts = Facts(hashlib.sha256(f"new {row}".encode()).hexdigest(), 450, 330, "JPEG", hashes[of].as_py(), thumb)
    images.append(Image(Found(f"/new/class-{row % 100:03d}/{row}.jpg", f"class-{row % 100:03d}", "/new", 9, 9), facts))
start = time.perf_counter()
merged = merging.merge(known, None, Prepared(tuple(images), (), 0, 0), None, classes=known.classes, val_split=0.1, generation=1)
plan = time.perf_counter() - start
order = make_order(merged.manifest, 0, 32, None, None, None, 1)
start = time.perf_counter()
order.batch(n)
epoch = time.perf_counter() - start
mixed = make_order(merged.manifest, 0, 32, "1:1", None, "class", 1)
start = time.perf_counter()
mixed.batch(n)
mixed_epoch = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"read": read, "merge 10,000": plan, "order of an epoch": epoch, "mixed order": mixed_epoch, "peak MB": peak}))
"""


def make_pictures(folder: Path, count: int) -> None:
    """Writes JPEGs that are neither trivial nor noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(count):
        width, height = int(rng.integers(440, 461)), int(rng.integers(322, 339))
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3)).astype(np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        texture = rng.integers(-12, 13, (height, width, 1))
        path = folder / f"class-{index % 4}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(smooth + texture, 0, 255).astype(np.uint8)).save(path, quality=85)


def run(script: str, *arguments: object) -> dict[str, float]:
    """Runs a script in its own process and parses its last line."""
    environment = {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    _, printed = pairs.run([sys.executable, "-c", script, *arguments], environment)
    return json.loads(printed.strip().splitlines()[-1]) if printed.strip() else {}


KERAS_NAME = "Keras image_dataset_from_directory"


def rounds_of(asked, contenders: dict[str, str], folder: Path, busy: pairs.Busy) -> dict[str, list[dict[str, float]]]:
    """Returns the measurements of each contender, round by round."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(asked.pairs):
        busy.wait(asked.wait)
        for contender in list(contenders)[:: -1 if number % 2 else 1]:
            script, work = contenders[contender], folder / f"cache-{number}"
            results[contender].append(run(script, folder / "pictures", SIZE, BATCH, work))
            pairs.note(f"round {number + 1}: {contender}: {results[contender][-1]}")
    return results


def feed(asked, images: int, folder: Path) -> None:
    """Prints the table of images per second, and what looking again and seeking take."""
    contenders = {
        KERAS_NAME: COMMON + KERAS.replace("CACHE", ""),
        "the same, .cache()": COMMON + KERAS.replace("CACHE", "data = data.cache()"),
    }
    for package, script in (("torch", TORCH), ("grain", GRAIN)):
        if importlib.util.find_spec(package) is None:
            pairs.note(f"{package} is not installed and left out")
        else:
            contenders[f"{package} with Pillow"] = COMMON + script
    contenders["kresume"] = COMMON + OURS
    busy = pairs.Busy()
    make_pictures(folder / "pictures", images)
    results = rounds_of(asked, contenders, folder, busy)
    rows = []
    for contender, rounds in results.items():
        speeds, ratios = [], []
        for key in ("first", "later"):
            both = [(each[key], base[key]) for each, base in zip(rounds, results[KERAS_NAME], strict=True)]
            speeds.append(f"{pairs.medians(both)[0]:,.0f}")
            ratios.append(pairs.ratio(both) if contender != KERAS_NAME else "1")
        rows.append([contender, *speeds, *ratios])
    print(f"{images} JPEGs of about 450x330 to {SIZE}x{SIZE}, batches of {BATCH}, {asked.pairs} rounds\n")
    columns = ["", "first pass, images/s", "later pass, images/s", "first, ratio to Keras", "later, ratio to Keras"]
    pairs.table(columns, rows, busy)
    ours = results["kresume"]
    seeks = [(each["seek 10^6"], each["seek 0"]) for each in ours]
    rescan = statistics.median(each["rescan"] for each in ours)
    print(f"\nrescan of the unchanged folder: {rescan:,.0f} files/s, no file read")
    print(f"first batch at step 10^6 over step 0: {pairs.ratio(seeks)} ({pairs.medians(seeks)[1] * 1e3:.0f} ms)")


def main() -> None:
    """Prints the tables."""
    made = pairs.parser(__doc__, "one round on a tenth of the images, a tenth of the rows")
    made.add_argument("--images", type=int, default=1600)
    made.add_argument(
        "--rows", type=int, default=1_000_000, help="of a manifest that is read, merged and ordered; 0 for none"
    )
    asked = pairs.parse(made)
    images, rows = (asked.images // 10, asked.rows // 10) if asked.quick else (asked.images, asked.rows)
    with tempfile.TemporaryDirectory() as name:
        if images:
            feed(asked, images, Path(name))
        if rows:
            run(RECORDED, Path(name) / "rows.parquet", "make", rows)
            for key, value in run(RECORDED, Path(name) / "rows.parquet", "use", rows).items():
                print(f"{rows:,} rows, {key}: {value:,.2f}")


if __name__ == "__main__":
    main()
