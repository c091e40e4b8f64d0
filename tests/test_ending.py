"""A process that is done leaves at once: nothing that tf.data started holds it."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import kresume
from kresume.images.augment import augmenter
from kresume.images.decode import DecodeSpec
from kresume.images.report import scan
from kresume.images.sheet import draw_sheet
from tests.conftest import write_pictures
from tests.support import TINY, run_training


@pytest.fixture
def autotuned(monkeypatch):
    """Whether the autotuner was on, for each dataset that was iterated in this process."""
    seen = []
    iterate = tf.data.Dataset.__iter__

    def noting(data):
        seen.append(data.options().autotune.enabled is not False)
        return iterate(data)

    monkeypatch.setattr(tf.data.Dataset, "__iter__", noting)
    return seen


def small_model(classes=3):
    layers = [keras.Input((12, 12, 3)), keras.layers.Flatten(), keras.layers.Dense(classes, "softmax")]
    model = keras.Sequential(layers)
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


def test_training_and_scoring_tune_nothing(autotuned, pictures, tmp_path):
    """tf.data's autotuner holds the end of an iterator for up to a minute; `kresume train` iterates none that has it."""
    run_training(data=[str(pictures / "old")], model="convnet", out=str(tmp_path / "run"), **TINY)
    assert autotuned
    assert not any(autotuned)


def test_datasets_for_a_users_own_fit_tune_nothing(autotuned, tmp_path):
    """Training and validation side of `image_dataset`, also mapped; `resumable` and what it wraps."""
    folder = write_pictures(tmp_path / "old", 6, 0)
    options = {"validation_split": 0.3, "subset": "both", "image_size": (12, 12), "batch_size": 4}
    training, validation = kresume.image_dataset(folder, cache=None, verbose=False, **options)
    small_model().fit(training, validation_data=validation, epochs=1, shuffle=False, verbose=0)
    next(iter(training.map(lambda image, label: (image, label, 1.0))))
    images = np.random.default_rng(0).random((8, 12, 12, 3), np.float32)

    def from_position(position):
        data = tf.data.Dataset.from_tensor_slices((images, np.zeros(8, np.int32))).batch(4).skip(position % 2)
        return data.map(lambda image, label: (image / 2, label), num_parallel_calls=tf.data.AUTOTUNE).prefetch(-1)

    small_model().fit(kresume.resumable(from_position, 2), epochs=2, shuffle=False, verbose=0)
    assert len(autotuned) >= 6
    assert not any(autotuned)


def test_a_contact_sheet_tunes_nothing(autotuned, pictures, tmp_path, quiet):
    """Its augmentation runs in tf.data as that of training does."""
    manifest = scan([str(pictures / "old")], quiet).manifest
    draw_sheet(manifest, DecodeSpec(12, 12), augmenter("light", 0), tmp_path / "sheet.png")
    assert autotuned == [False]


def test_every_file_that_makes_a_dataset_turns_the_autotuner_off(request):
    """A new dataset of ours that forgets it fails here, whoever iterates it."""
    sources = Path(request.config.rootpath, "kresume").rglob("*.py")
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    makers = {name for name, text in texts.items() if "tf.data.Dataset." in text or "tf.data.TFRecordDataset(" in text}
    assert {"pipeline.py", "stream.py", "dataset.py", "graph.py"} <= makers
    off = ("without_autotuner(", "autotune.enabled = False")
    assert [name for name in makers if not any(word in texts[name] for word in off)] == []
