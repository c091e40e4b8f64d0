"""Counts errors of near-duplicate detection: missed copies, and false pairs among real photographs.

    python scripts/bench/near.py ../shared/data/signdigits ../shared/data/clothing digits

Compares every picture of a folder with every other. None of them are copies, so each pair found is a false pair. Then
makes copies (saved again, smaller, brighter, cut) and compares them with their originals: each copy not found is a
miss. The table shows our rule beside the difference hash alone, as it is commonly used. `digits` are scikit-learn's
handwritten digits, drawn as in MNIST: 28x28, white on black, centred. The results are counts, not times, so a busy
machine does not change them.

Takes about 3 minutes on 2 cores; --quick (10 copies of each kind) about 1.
"""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pairs
from PIL import Image, ImageEnhance

from kresume.errors import ImagesError
from kresume.images.decode import decode
from kresume.images.likeness import likeness
from kresume.images.near import near_pairs
from kresume.values.decode_spec import DecodeSpec

HASH_BITS = 4


def saved(image: Image.Image, quality: int) -> bytes:
    """Returns the picture encoded as a JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def cut(image: Image.Image, share: float) -> Image.Image:
    """Crops the picture by that share of its width and height on each edge."""
    x, y = int(image.width * share), int(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


COPIES: dict[str, Callable[[Image.Image], bytes]] = {
    "saved at quality 90": lambda image: saved(image, 90),
    "saved at quality 50": lambda image: saved(image, 50),
    "half the size": lambda image: saved(
        image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS), 85
    ),
    "twice the size": lambda image: saved(
        image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC), 90
    ),
    "1.1 times as bright": lambda image: saved(ImageEnhance.Brightness(image).enhance(1.1), 90),
    "2 % cut from each side": lambda image: saved(cut(image, 0.02), 90),
}


def pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields (class, bytes) for every picture below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in {".jpg", ".jpeg", ".png"}:
            yield path.parent.name, path.read_bytes()


def digits() -> Iterator[tuple[str, bytes]]:
    """Yields (class, bytes of a PNG file) for 1,797 handwritten digits, drawn as in MNIST."""
    from sklearn.datasets import load_digits

    found = load_digits()
    for label, image in zip(found.target, found.images, strict=True):
        large = Image.fromarray((image * (255 / 16)).astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        strokes = np.clip((np.asarray(large, np.float32) - 90) * 2.2, 0, 255).astype(np.uint8)
        rows, columns = np.nonzero(strokes > 40)
        part = Image.fromarray(strokes).crop((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        scale = 20 / max(part.size)
        size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
        ink = np.asarray(part.resize(size, Image.Resampling.LANCZOS), np.float32)
        middle = [(ink.sum(axis=1 - axis) @ np.arange(ink.shape[axis])) / ink.sum() for axis in (0, 1)]
        top, left = (int(np.clip(round(13.5 - at), 0, 28 - side)) for at, side in zip(middle, ink.shape, strict=True))
        picture = np.zeros((28, 28), np.uint8)
        picture[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        yield str(label), file.getvalue()


def main() -> None:
    """Prints two tables for each folder."""
    made = pairs.parser(__doc__, "10 copies of each kind")
    made.add_argument("folders", nargs="+", help="folders of pictures, or the word digits")
    asked = pairs.parse(made)
    for name in asked.folders:
        labels, files = zip(*(digits() if name == "digits" else pictures(Path(name))), strict=True)
        spec = DecodeSpec(28, 28) if name == "digits" else DecodeSpec(64, 64)
        hashes, thumbs = likeness([decode(data, spec) for data in files])
        everything = np.ones(len(files), bool)
        bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(-1, 8), axis=1).astype(np.float32)
        distance = bits @ (1 - bits.T) + (1 - bits) @ bits.T
        one, other = np.nonzero(np.triu(distance <= HASH_BITS, 1))
        differing = sum(labels[a] != labels[b] for a, b in zip(one, other, strict=True))
        ours = near_pairs(thumbs, everything, everything)
        print(f"\n{Path(name).name}: {len(files):,} pictures, no copies among them\n")
        counts = [f"all ({differing} of the first of different classes)", str(len(one)), str(len(ours))]
        pairs.table(["wrong pairs", f"hash alone, {HASH_BITS} bits", "kresume"], [counts])
        chosen = np.random.default_rng(0).permutation(len(files))[: 10 if asked.quick else 200]
        rows = []
        for words, copy in COPIES.items():
            alone = both = count = 0
            for index in chosen:
                with Image.open(io.BytesIO(files[index])) as image:
                    data = copy(image.convert("RGB"))
                try:
                    hash_, thumb = likeness([decode(data, spec)])
                except ImagesError:
                    continue
                pair = np.array([hashes[index], hash_[0]])
                count += 1
                alone += int(np.bitwise_count(pair[0] ^ pair[1]) <= HASH_BITS)
                new = np.array([False, True])
                both += len(near_pairs(np.stack([thumbs[index], thumb[0]]), np.ones(2, bool), new))
            rows.append([words, f"{100 * alone / count:.0f} %", f"{100 * both / count:.0f} %"])
        print()
        pairs.table(["copies found", "hash alone", "kresume"], rows)


if __name__ == "__main__":
    main()
