"""Tests `--drop` beside other options: an image to forget is work, and no later command brings its pixels back."""

import hashlib
import shutil
from pathlib import Path

import pytest

import kresume
from kresume import runs
from kresume.backend import hosts
from kresume.errors import NothingNew
from kresume.evaluation.evaluate import evaluate
from kresume.images.cache import Cache
from kresume.images.manifest import Manifest
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.reports import data as report
from kresume.training.loop.watch import Watch
from kresume.training.plan.helping import help_out
from tests.helpers.pictures import write_pictures
from tests.helpers.runs import TINY, run_training, trained

pytestmark = pytest.mark.one_backend(trains=True)
GONE = "old/circle/0.png"


def content_of(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def files_with(folder, sha256):
    """Returns the files of a cache that name an image: an index of decoded pictures, or the facts of files."""
    forms = (sha256.encode(), bytes.fromhex(sha256))
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return [path.name for path in files if any(form in path.read_bytes() for form in forms)]


@pytest.fixture
def parent(workplace, monkeypatch):
    """Trains a run whose pictures are in a cache of their own, and names one of them to be dropped."""
    monkeypatch.setenv("KRESUME_CACHE", str(workplace / "cache"))
    trained("runs/1", data=["old"], **TINY)
    evaluate("runs/1", data=["old"])
    (workplace / "drop.txt").write_text(f"{GONE}\n")
    assert len(files_with("cache", content_of(GONE))) == 2
    return workplace


KNOWN = {
    "the folder of the parent": {"add": ["old"]},
    "another folder": {"add": ["known"]},
    "another folder with the image": {"add": ["copies"]},
    "old images, too": {"data": ["old"], "add": ["known"]},
    "a pattern without a match": {"add": []},
    "validation images": {"add": ["known"], "val": ["known"]},
    "a watched folder": {"add": ["known"], "watch": True},
}


@pytest.mark.parametrize("given", KNOWN.values(), ids=KNOWN)
def test_an_image_to_forget_is_work(parent, given):
    """A run without it is made although nothing new comes, the plan says so, and the cache loses it."""
    shutil.copytree("old", "copies")
    shutil.copytree("old", "known")
    (parent / "known" / "circle" / "0.png").unlink()
    arguments = {"drop": "drop.txt", "epochs": 1, **given}
    plan = kresume.plan("runs/1", quiet=True, trial=False, **arguments)
    assert plan.images["dropped"] == 1
    assert any("1 image dropped (" in note for note in plan.notes)
    assert len(files_with("cache", content_of(GONE))) == 2
    result = run_training("runs/1", out="runs/2", **arguments)
    run = runs.open_run(result.run)
    assert run.record.dropped == (content_of(GONE),)
    assert content_of(GONE).encode() not in Manifest.read(run.manifest).sha256s.tolist()
    assert not files_with("cache", content_of(GONE))
    with pytest.raises(NothingNew) as told:  # the parent does not have it any more
        run_training("runs/2", out="runs/3", **{**arguments, "watch": None})
    assert "dropped, now" not in str(told.value)
    assert not Path("runs/3").exists()


def test_an_image_that_an_earlier_run_only_had_is_work(parent):
    """An image that is away would keep its thumbnail in each later run."""
    shutil.move(GONE, "elsewhere.png")
    run_training("runs/1", out="runs/2", add=["new"], on_missing="drop", epochs=1, lr=1e-3)
    assert (parent / "runs" / "2" / "away.parquet").exists()
    (parent / "drop.txt").write_text(content_of("elsewhere.png"))
    run_training("runs/2", out="runs/3", add=["new"], drop="drop.txt", epochs=1, lr=1e-3)
    assert not (parent / "runs" / "3" / "away.parquet").exists()
    assert not files_with("cache", content_of("elsewhere.png"))


def test_a_drop_of_what_the_parent_does_not_have_is_nothing_new(parent):
    """The message claims no removal, and the picture that was read to find this out is not kept."""
    write_pictures(parent / "inbox", 1, 400, ("circle",))
    (parent / "drop.txt").write_text("inbox/circle/400.png\n")
    with pytest.raises(
        NothingNew, match=r"0 images in inbox are already .*; 1 image that --drop names is not in runs/1$"
    ):
        run_training("runs/1", add=["inbox"], drop="drop.txt", epochs=1)
    assert not files_with("cache", content_of("inbox/circle/400.png"))


def test_a_dropped_image_whose_file_is_gone_is_not_decoded(parent):
    """It need not be in the cache, and no other image has to be restored for it."""
    Path(GONE).unlink()
    shutil.rmtree("cache")
    result = run_training("runs/1", out="runs/2", add=["new"], drop="drop.txt", epochs=1)
    assert len(runs.open_run(result.run).record.dropped) == 1


def add_a_copy(run):
    run_training(run, out="runs/3", add=["copies", "new"], epochs=1)


def give_old_images(run):
    run_training(run, out="runs/3", data=["copies"], add=["new"], epochs=1)


def nothing_new(run):
    with pytest.raises(NothingNew, match="1 image is left out, because an earlier run dropped it"):
        run_training(run, out="runs/3", add=["copies"], epochs=1)


def validate(run):
    run_training(run, out="runs/3", add=["new"], val=["copies"], epochs=1)


def watch(run):
    run_training(run, out="runs/3", add=["copies", "new"], watch=True, epochs=2)


def score(run):
    assert evaluate(run, data=["copies"]).scores["all"]["images"] == 24


def check(run):
    opened = runs.open_run(run)
    against = Manifest.read(opened.manifest)
    report.scan(["copies"], Reporter(quiet=True), against=against, dropped=runs.dropped_by(opened))


def predict(run):
    kresume.predict(run, ["copies"])


def help_another_host(run):
    config = from_arguments(run, {"add": ["copies"]})
    spec = runs.open_run(run).record.card.spec
    job = {"spec": vars(spec), "unkept": sorted(runs.dropped_by(runs.open_run(run)))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosts, "meet", lambda: None)
        help_out(job, config, Reporter(quiet=True))


WAYS = [add_a_copy, give_old_images, nothing_new, validate, watch, score, check, predict, help_another_host]


@pytest.mark.parametrize("way", WAYS, ids=[way.__name__ for way in WAYS])
def test_the_pixels_of_a_dropped_image_do_not_come_back(parent, monkeypatch, way):
    """Whatever command of a later run reads a copy: not one file of the cache ever names it."""
    run_training("runs/1", out="runs/2", drop="drop.txt", epochs=1, lr=1e-3)
    assert not files_with("cache", content_of(GONE))
    shutil.copytree("old", "copies")
    seen = []
    flush = Cache.refresh  # after each shard was written
    monkeypatch.setattr(
        Cache, "refresh", lambda cache: (flush(cache), seen.append(files_with("cache", content_of(GONE))))
    )
    way("runs/2")
    assert not any(seen)
    assert not files_with("cache", content_of(GONE))


def test_pixels_that_another_command_wrote_are_removed_by_the_next_run(parent):
    """A model that knows of no drop decodes the image into the same cache."""
    run_training("runs/1", out="runs/2", drop="drop.txt", epochs=1, lr=1e-3)
    evaluate("runs/1", data=["old"])
    assert files_with("cache", content_of(GONE))
    run_training("runs/2", out="runs/3", add=["new"], epochs=1)
    assert not files_with("cache", content_of(GONE))


def test_an_image_that_arrives_and_is_named_by_its_path_is_not_kept(parent, monkeypatch):
    """It joins no epoch, and the other images of the run are read as before."""
    write_pictures(parent / "inbox", 2, 500)
    Path("drop.txt").write_text("inbox/circle/900.png\n")
    look = Watch.look

    def arriving(self, *arguments):
        write_pictures(parent / "inbox", 1, 900)
        monkeypatch.setattr("kresume.training.loop.watch.SETTLED_SECONDS", 0)
        return look(self, *arguments)

    monkeypatch.setattr(Watch, "look", arriving)
    result = run_training("runs/1", out="runs/2", add=["inbox"], drop="drop.txt", watch=True, epochs=3)
    scans = sorted((Path(result.run) / "images").glob("*.parquet"))
    assert scans
    assert not files_with("cache", content_of("inbox/circle/900.png"))
    assert files_with("cache", content_of("inbox/square/1900.png"))
