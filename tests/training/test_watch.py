"""Tests `--watch`: images that arrive while a run trains, and files that leave it."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kresume import runs
from kresume.checkpoints import snapshot
from kresume.errors import CheckpointError, ImagesError, NothingNew, Stopped, UsageError
from kresume.images import merging, scans
from kresume.images.manifest import Manifest
from kresume.images.mixing import make_order
from kresume.images.order import LaterOrder, Order
from kresume.images.prepare import prepare
from kresume.images.sources import list_images
from kresume.options.resolve import from_arguments
from kresume.reporter import Reporter
from kresume.storage import atomic
from kresume.training.loop import arrivals, callbacks, watch
from kresume.training.loop.epochs import Passes
from kresume.training.loop.watch import Watch
from kresume.training.plan.amount import decide_amount
from kresume.training.resume import train
from kresume.values.amount import Amount
from kresume.values.decode_spec import DecodeSpec
from tests.helpers.pictures import CLASSES, save_photo, write_pictures
from tests.helpers.runs import (
    TINY,
    assert_same_bytes,
    lines_without_time,
    make_interrupted,
    result_arrays,
    run_training,
    trained,
)

SPEC = DecodeSpec(12, 12, "stretch", "area")


class Telling(Reporter):
    """A reporter that keeps its messages."""

    def __init__(self):
        super().__init__(quiet=True)
        self.told = []

    def say(self, text):
        self.told.append(text)

    def warn(self, text):
        self.told.append(text)


def settled(*paths):
    """Sets file times back, as if the files had existed for a while."""
    for path in paths:
        for file in [path, *path.rglob("*")] if path.is_dir() else [path]:
            os.utime(file, (time.time() - 60, time.time() - 60))


def arrive(folder, count, seed):
    """Adds pictures of the known classes, complete and settled."""
    settled(write_pictures(folder, count, seed))


# --- the order, where the images change -------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    before=st.integers(1, 40),
    after=st.integers(1, 60),
    batch=st.integers(1, 16),
    epoch=st.integers(1, 4),
    data=st.data(),
)
@pytest.mark.one_backend
def test_each_pass_deals_every_image_once(before, after, batch, epoch, data):
    """After a change every pass still holds each image once.

    Images of the next pass that the last batch before the change already drew are not drawn again in it.
    """
    old = Order(3, before, batch)
    step = old.epoch_end(epoch - 1)
    taken = old.take(old.dealt_by(epoch - 1), step * batch - old.dealt_by(epoch - 1))
    kept = taken[taken < after]  # the others left
    order = LaterOrder(Order(3, after, batch), epoch, step, kept)
    start = step * batch
    first = order.take(start, order.dealt_by(epoch) - start)
    if len(kept) <= after and len(np.unique(kept)) == len(kept):
        assert sorted([*kept.tolist(), *first.tolist()]) == list(range(after))
    second = order.take(order.dealt_by(epoch), after)
    assert sorted(second.tolist()) == list(range(after))
    whole = order.take(start, 3 * after + batch)
    place = data.draw(st.integers(0, 2 * after))
    assert order.take(start + place, batch).tolist() == whole[place : place + batch].tolist()
    assert order.batch(step + 1).tolist() == order.take(start + batch, batch).tolist()


def table_of(folder, quiet, spec=SPEC, val_split=None):
    listing = list_images([str(folder)], quiet)
    return merging.merge(
        None, prepare(listing.files, spec, None, quiet), None, None, classes=CLASSES, val_split=val_split, generation=0
    ).manifest


def passes_of(manifest, epochs=4, steps=None, batch_size=5, per_call=1):
    count = len(manifest.train_rows())
    amount = decide_amount(
        images=count,
        new_images=count,
        batch_size=batch_size,
        epochs=epochs if steps is None else None,
        steps=steps,
        new_model=True,
        steps_per_execution=per_call,
    )
    return Passes(manifest, amount, lambda table: make_order(table, 0, batch_size, None, None, None, 0), steps)


@pytest.mark.one_backend
def test_epochs_stay_passes_and_the_plan_ends_where_it_should(tmp_path, quiet):
    """Epochs stay whole passes after a change, and the schedule's clock ends at the plan's end.

    24 images, 12 more after the first epoch.
    """
    few, many = (table_of(write_pictures(tmp_path / name, count, 0), quiet) for name, count in (("a", 8), ("b", 12)))
    passes = passes_of(few)
    assert passes.boundaries == [5, 10, 15, 20]
    passes.change(1, many)
    taken = 5 * 5 - 24
    assert passes.boundaries == [5, *(-(-(25 + 36 * each - taken) // 5) for each in (1, 2, 3))]
    clock = passes.clock
    assert (clock.step, clock.planned) == (5, 5)
    assert clock.planned + (passes.boundaries[-1] - clock.step) * clock.pace == pytest.approx(20)
    passes.change(3, few)
    assert passes.clock.planned == 15
    assert len(passes.boundaries) == 4


@pytest.mark.one_backend
def test_steps_stay_steps(tmp_path, quiet):
    """`--steps` fixes the amount: more images make fewer epochs, and the schedule keeps its time."""
    few, many = (table_of(write_pictures(tmp_path / name, count, 0), quiet) for name, count in (("a", 8), ("b", 16)))
    passes = passes_of(few, steps=20)
    passes.change(1, many)
    assert passes.boundaries[-1] == 20
    assert len(passes.boundaries) == 3
    assert (passes.clock.step, passes.clock.pace) == (0.0, 1.0)
    calls = passes_of(few, per_call=2)
    calls.change(1, many)
    assert all(end % 2 == 0 for end in calls.boundaries)


def test_a_schedule_reads_its_clock():
    """A schedule with an unset clock gives the bits of one without; a set clock shifts its time."""
    import keras

    from kresume.backend import live_state
    from kresume.models.schedules import Clock, Cosine, set_clock, wind

    plain, timed = (Cosine(1e-3, 40, 4, origin=7) for _ in range(2))
    optimizer = keras.optimizers.AdamW(timed)
    optimizer.build([keras.Variable(np.zeros(3, "float32"))])
    before = live_state.optimizer_variables(optimizer)
    wind(optimizer)
    assert [id(variable) for variable in live_state.optimizer_variables(optimizer)] == [id(each) for each in before]

    def rate(schedule, step):
        return np.asarray(keras.ops.convert_to_numpy(schedule(keras.ops.convert_to_tensor(step, "int32")))).tobytes()

    assert [rate(plain, step) for step in range(7, 50)] == [rate(timed, step) for step in range(7, 50)]
    set_clock(optimizer, Clock(step=10, planned=20, pace=0.5), iterations=7)
    assert rate(timed, 7 + 30) == rate(plain, 7 + 30)
    assert rate(timed, 7 + 50) == rate(plain, 7 + 40)
    constant = keras.optimizers.SGD(0.1)
    constant.build([])
    wind(constant)
    assert not any(variable.name == live_state.CLOCK for variable in constant.variables)


# --- the scan --------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(tmp_path, quiet):
    """Writes a folder of 24 settled pictures; returns it with its manifest and a watch over it."""
    write_pictures(tmp_path / "old", 8, 0)
    settled(tmp_path / "old")
    reporter = Telling()
    config = from_arguments(None, {"data": [str(tmp_path / "old")], "cache": "off", "val_split": 0.25})
    return (
        tmp_path / "old",
        table_of(tmp_path / "old", quiet),
        Watch(config, CLASSES, SPEC, None, 0, reporter),
        reporter,
    )


def names(table):
    return sorted(Path(path).name for path in table.column("path").to_pylist())


def looked(watch, manifest, everything=None):
    return watch.look(manifest, everything or manifest, lambda: None)


@pytest.mark.one_backend
def test_what_came_joins_once_with_its_side(watched):
    """Arrivals join once, as rows of this generation, with splits by content."""
    folder, manifest, watching, _ = watched
    assert len(looked(watching, manifest)) == 0
    arrive(folder, 4, 500)
    rows = looked(watching, manifest)
    assert len(rows) == 12
    assert set(rows.column("origin").to_pylist()) == {0}
    assert set(rows.column("side").to_pylist()) == {"train", "val"}
    grown = manifest.changed(rows, ())
    assert len(looked(watching, grown)) == 0


@pytest.mark.one_backend
def test_of_a_data_set_given_for_validation_its_training_images_stay_out(tmp_path, quiet, watched):
    """As when the run begins."""
    _, manifest, _, reporter = watched
    for name, seed in (("train", 600), ("val", 700)):
        arrive(tmp_path / "set" / name, 2, seed)
    options = {"data": [str(tmp_path / "old")], "val": [str(tmp_path / "set")], "cache": "off", "val_split": 0.0}
    rows = looked(Watch(from_arguments(None, options), CLASSES, SPEC, None, 0, reporter), manifest)
    assert {Path(path).parent.parent.name for path in rows.column("path").to_pylist()} == {"val"}
    assert set(rows.column("side").to_pylist()) == {"val"}


@pytest.mark.one_backend
def test_a_half_copied_file_is_left_for_the_next_epoch(watched):
    """A half-copied file waits: it must decode, and be old or unchanged between two scans."""
    folder, manifest, watching, reporter = watched
    save_photo(folder / "whole.tmp", 1)
    data = (folder / "whole.tmp").read_bytes()
    (folder / "whole.tmp").unlink()
    arriving = folder / "circle" / "arriving.jpg"
    arriving.write_bytes(data[: len(data) // 2])
    settled(arriving)
    assert len(looked(watching, manifest)) == 0
    assert any("arriving.jpg cannot be used now" in text for text in reporter.told)
    arriving.write_bytes(data)
    os.utime(arriving, (time.time() + 60, time.time() + 60))  # written this very moment, however slow this machine is
    assert len(looked(watching, manifest)) == 0  # more may come
    assert names(looked(watching, manifest)) == ["arriving.jpg"]
    assert sum("cannot be used now" in text for text in reporter.told) == 1


@pytest.mark.one_backend
def test_a_file_that_grows_while_it_is_read_waits(watched, monkeypatch):
    """A file that grows while it is read waits: its size after reading differs from the listed one."""
    folder, manifest, watching, _ = watched
    arrive(folder, 1, 700)
    real = watch.prepare

    def slowly(part, *arguments, **options):
        done = real(part, *arguments, **options)
        with open(part[0].path, "ab") as file:
            file.write(b"more")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(watch, "prepare", slowly)
        assert len(looked(watching, manifest)) == 2
    settled(folder)
    assert len(looked(watching, manifest)) == 3


@pytest.mark.one_backend
def test_what_needs_a_decision_waits_for_the_next_generation(watched):
    """An unknown class or a changed label waits for the next generation and is named once.

    A copy does not join either.
    """
    folder, manifest, watching, reporter = watched
    write_pictures(folder, 2, 900, ("triangle",))
    shutil.copy(folder / "circle" / "0.png", folder / "square" / "moved.png")
    shutil.copy(folder / "circle" / "1.png", folder / "circle" / "copy.png")
    (folder / "circle" / "2.png").rename(folder / "square" / "was-a-circle.png")
    settled(folder)
    for _ in range(3):
        assert len(looked(watching, manifest)) == 0
    told = "\n".join(reporter.told)
    assert told.count("2 images of triangle, a class that the model does not have, wait for the next generation") == 1
    assert told.count("was-a-circle.png has the label circle in the run and now has square: the new label waits") == 1
    assert told.count(f"moved.png is the same image as {folder}/circle/0.png, which has the label circle and not") == 1
    assert "copy.png" not in told
    waiting = [
        ("triangle", "2 images of a class that the model does not have"),
        (str(folder / "square" / "moved.png"), "circle in the run, square in the sources"),
        (str(folder / "square" / "was-a-circle.png"), "circle in the run, square in the sources"),
    ]
    assert sorted(watching.waiting, key=str) == sorted(waiting, key=str)
    folder.rename(folder.with_name("away"))
    looked(watching, manifest)
    folder.with_name("away").rename(folder)
    assert sorted(watching.waiting, key=str) == sorted(waiting, key=str)
    (folder / "square" / "moved.png").unlink()
    shutil.rmtree(folder / "triangle")
    looked(watching, manifest)
    assert watching.waiting == waiting[2:]


@pytest.mark.parametrize("policy", ["quarantine", "old"])
@pytest.mark.one_backend
def test_a_list_that_changes_is_read_like_a_folder(tmp_path, quiet, watched, policy):
    """Corrected, missing and removed rows are named once; what was corrected before the run is no news."""
    folder, manifest, _, reporter = watched
    rows = dict(zip(manifest.paths(np.arange(24)), manifest.table["label"].to_pylist(), strict=True))
    listed = tmp_path / "l.csv"

    def write(changes):
        listed.write_text(
            "path,label\n" + "".join(f"{path},{label}\n" for path, label in (rows | changes).items() if label)
        )
        settled(listed)

    write({})
    first, second, third, fourth = sorted(rows)[:4]
    table = table_of(listed, quiet).table.to_pylist()
    corrected = [
        {**row, "label": "square", "replaced": '["circle"]'} if row["path"] == fourth else row for row in table
    ]
    manifest = Manifest.from_table(manifest.table.from_pylist(corrected, manifest.table.schema), CLASSES)
    config = from_arguments(None, {"data": [str(listed)], "cache": "off", "on_conflict": policy})
    watching = Watch(config, CLASSES, SPEC, None, 0, reporter)
    looked(watching, manifest)
    assert reporter.told == []
    write({first: "square", second: "triangle", third: "", str(folder / "new.png"): "circle"})
    for _ in range(2):
        assert len(looked(watching, manifest)) == 0
    told = "\n".join(reporter.told)
    words = f"1 image has another label in the sources now, the first is {first} (circle in the run, now square)"
    assert told.count(words) == (policy != "old")
    assert told.count("1 image of triangle, a class that the model does not have, waits") == 1
    assert told.count(f"{folder}/new.png cannot be used now (listed in {listed}, but it cannot be read") == 1
    assert told.count(f"1 file is no longer listed in the sources, the first is {third}: this run goes on") == 1
    reasons = [reason for _, reason in watching.waiting]
    assert ("circle in the run, square in the sources" in reasons) == (policy != "old")
    assert any(reason.startswith(f"listed in {listed}, but it cannot be read") for reason in reasons)


@pytest.mark.one_backend
def test_what_vanished_is_named_once(watched):
    """A vanished file is named once; a source that cannot be listed is tried again later.

    Training never ends because of them.
    """
    folder, manifest, watching, reporter = watched
    (folder / "square" / "1000.png").unlink()
    for _ in range(2):
        assert len(looked(watching, manifest)) == 0
    assert sum("1 file is no longer in the sources, the first is" in text for text in reporter.told) == 1
    folder.rename(folder.with_name("away"))
    assert len(looked(watching, manifest)) == 0
    assert any("cannot be listed now" in text for text in reporter.told)
    folder.with_name("away").rename(folder)
    arrive(folder, 1, 950)
    assert len(looked(watching, manifest)) == 3


# --- whole runs -------------------------------------------------------------------------------------------------------


def arriving_before(monkeypatch, epochs):
    """Calls `epochs[k]()` just before the sources are scanned before epoch k (counted from 1)."""
    real = arrivals.Changes.before_epoch

    def before_epoch(self, done, manifest, poll):
        if done + 1 not in self._scans:
            epochs.get(done + 1, lambda: None)()
        return real(self, done, manifest, poll)

    monkeypatch.setattr(arrivals.Changes, "before_epoch", before_epoch)


GROWN = {
    "two-steps-per-call-balanced": {"steps_per_execution": 2, "batch_size": 4, "balance": "class"},
    "cache-off-float16-ema": {"cache": "off", "precision": "mixed_float16", "ema": 0.9},
}


@pytest.mark.one_backend(trains=True)  # what grows is the list of images
@pytest.mark.parametrize("name", GROWN)
@pytest.mark.sample("cache-off-float16-ema")
def test_a_run_that_grew_continues_exactly(monkeypatch, tmp_path, name):
    """A grown run killed at any snapshot sees the same images in order, and its schedule ends at zero."""
    write_pictures(tmp_path / "old", 8, 0)
    settled(tmp_path / "old")
    arguments = {"data": [str(tmp_path / "old")], "watch": True, **TINY, "epochs": 4, **GROWN[name]}
    came = {2: lambda: arrive(tmp_path / "old", 8, 500), 4: lambda: arrive(tmp_path / "old", 6, 600)}
    with monkeypatch.context() as patch:
        arriving_before(patch, came)
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        whole = Path(run_training(out=str(tmp_path / "whole"), snapshot_every="1", **arguments).run)
    expected, lines = result_arrays(whole), lines_without_time(whole)
    assert [path.name for path in sorted((whole / "images").iterdir())] == [
        f"epoch-000{each}.parquet" for each in (2, 3, 4)
    ]
    per_epoch = np.diff([0, *(line["step"] for line in lines)])
    assert per_epoch[1] > per_epoch[0]
    assert per_epoch[3] > per_epoch[2]
    assert lines[-1]["lr"] == pytest.approx(0.0, abs=1e-9)
    assert {line["all"]["images"] for line in lines} == {lines[0]["all"]["images"]}
    # With a scoring pending before an epoch that grows, and inside a grown epoch.
    taken = snapshot.list_snapshots(whole / "snapshots")
    unscored = [place for place, (_, folder) in enumerate(taken) if folder.name.endswith("-unscored")]
    for number, place in enumerate((unscored[1], len(taken) // 2)):
        killed = tmp_path / f"killed-{number}"
        shutil.copytree(whole, killed)
        make_interrupted(killed, taken[place][1].name)
        run_training(out=str(killed))
        assert_same_bytes(expected, result_arrays(killed))
        assert lines_without_time(killed) == lines, taken[place][1].name


@pytest.mark.one_backend(trains=True)
def test_each_image_is_drawn_as_often_as_its_epochs(monkeypatch, tmp_path):
    """Each image is drawn once per epoch since it joined: the first 24 in all, arrivals in one fewer."""
    write_pictures(tmp_path / "old", 8, 0)
    settled(tmp_path / "old")
    with monkeypatch.context() as patch:
        arriving_before(patch, {2: lambda: arrive(tmp_path / "old", 4, 500)})
        path = Path(
            run_training(
                out=str(tmp_path / "run"),
                data=[str(tmp_path / "old")],
                watch=True,
                **{**TINY, "epochs": 3, "val_split": 0.0},
            ).run
        )
    base = Manifest.read(path / "images.parquet")
    record = json.loads((path / "run.json").read_text())
    passes = Passes(
        base, Amount.from_dict(record["amount"]), lambda table: make_order(table, 0, 5, None, None, None, 0), None
    )
    drawn = dict.fromkeys(scans.manifest_of(path).sha256s.tolist(), 0)
    step = 0
    for epoch in range(3):
        scan = scans.read_scans(path / "images").get(epoch + 1)
        if scan is not None and scan.changes:
            passes.change(epoch, scan.applied_to(passes.manifest))
        while step < passes.boundaries[epoch]:
            for row in passes.manifest.train_rows()[passes.order.batch(step)]:
                drawn[passes.manifest.sha256s[row]] += 1
            step += 1
    assert step == json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    extra = step * 5 - (3 * 24 + 2 * 12)
    counts = [drawn[sha] - (3 if sha in set(base.sha256s.tolist()) else 2) for sha in drawn]
    assert 0 <= extra < 5
    assert sorted(counts) == [0] * (len(drawn) - extra) + [1] * extra


@pytest.mark.one_backend(trains=True)
def test_the_next_generation_remembers_what_came(monkeypatch, tmp_path, pictures):
    """Arrivals are old images of a child run: scored there in their split, and not new when given again."""
    shutil.copytree(pictures / "old", tmp_path / "old")
    write_pictures(tmp_path / "inbox", 4, 100)
    parent = trained(tmp_path / "1-parent", data=[str(tmp_path / "old")], **TINY)
    with monkeypatch.context() as patch:
        arriving_before(patch, {2: lambda: arrive(tmp_path / "inbox", 5, 600)})
        grown = run_training(
            parent, add=[str(tmp_path / "inbox")], watch=True, lr=1e-3, epochs=2, out=str(tmp_path / "2-grown")
        ).run
    record = runs.open_run(grown).record.as_dict()
    table = scans.manifest_of(Path(grown))
    assert record["images"]["total"] == len(table) == 24 + 12 + 15
    assert record["images"]["added"] == 27
    assert "images changed" in (Path(grown) / "events.jsonl").read_text()
    with pytest.raises(NothingNew, match="nothing new: all 27 images"):
        run_training(grown, add=[str(tmp_path / "inbox")], out=str(tmp_path / "3"))
    write_pictures(tmp_path / "inbox", 1, 990)
    child = run_training(grown, add=[str(tmp_path / "inbox")], epochs=1, out=str(tmp_path / "3-child")).run
    after = Manifest.read(Path(child) / "images.parquet")
    assert np.bincount(after.origins).tolist() == [24, 27, 3]
    scored, before = (runs.read_metrics(Path(path) / "metrics.jsonl")[-1]["all"]["images"] for path in (child, grown))
    assert scored == len(after.val_rows()) > before
    assert len(scans.manifest_of(Path(grown), 1)) == 36


@pytest.mark.one_backend(trains=True)
def test_a_signal_during_the_look_loses_nothing(monkeypatch, tmp_path):
    """A signal during the scan loses nothing: the state is kept, and the scan is repeated.

    Preparing arrivals may take longer than the grace period.
    """
    write_pictures(tmp_path / "old", 8, 0)
    settled(tmp_path / "old")
    arguments = {"data": [str(tmp_path / "old")], "watch": True, **TINY, "epochs": 3}

    def interrupted(self, manifest, everything, poll):
        self_stop[0].signal = 15
        poll()

    self_stop = []
    enter = callbacks.StopRequest.__enter__
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StopRequest, "__enter__", lambda self: self_stop.append(self) or enter(self))
        patch.setattr(Watch, "look", interrupted)
        with pytest.raises(Stopped, match=r"stopped while looking for images after step \d+, snapshot written"):
            run_training(out=str(tmp_path / "run"), **arguments)
    assert not (tmp_path / "run" / "images").exists()
    arrive(tmp_path / "old", 2, 500)
    run_training(out=str(tmp_path / "run"), **arguments)
    assert len(scans.manifest_of(tmp_path / "run")) == 30


@pytest.mark.one_backend(trains=True)
def test_scans_that_were_tampered_with_are_refused(monkeypatch, tmp_path):
    """A missing or changed scan is refused, because it does not give the images of the snapshots."""
    write_pictures(tmp_path / "old", 8, 0)
    settled(tmp_path / "old")
    arguments = {"data": [str(tmp_path / "old")], "watch": True, **TINY, "epochs": 3}
    came = {2: lambda: arrive(tmp_path / "old", 2, 500), 3: lambda: arrive(tmp_path / "old", 2, 600)}
    with monkeypatch.context() as patch:
        arriving_before(patch, came)
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        whole = Path(run_training(out=str(tmp_path / "whole"), snapshot_every="1", **arguments).run)
    make_interrupted(whole, snapshot.list_snapshots(whole / "snapshots")[-2][1].name)
    kept = (whole / "images" / "epoch-0002.parquet").read_bytes()
    (whole / "images" / "epoch-0002.parquet").unlink()
    with pytest.raises(ImagesError, match="the scan before epoch 3 does not result in the images that it recorded"):
        run_training(out=str(whole))
    (whole / "images" / "epoch-0003.parquet").unlink()
    with pytest.raises(CheckpointError, match="is not the manifest that the snapshots were taken with"):
        run_training(out=str(whole))
    (whole / "images" / "epoch-0002.parquet").write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ImagesError, match="cannot be read"):
        run_training(out=str(whole))


@pytest.mark.one_backend(trains=True)
def test_a_disk_that_refuses_a_scan_leaves_the_arrivals_for_later(monkeypatch, tmp_path):
    """If a scan cannot be written, arrivals wait, training continues, and the exit code is 5."""
    write_pictures(tmp_path / "old", 8, 0)
    settled(tmp_path / "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        arriving_before(patch, {2: lambda: arrive(tmp_path / "old", 2, 500)})
        patch.setattr(scans, "write_scan", full)
        result = run_training(out=str(tmp_path / "run"), data=[str(tmp_path / "old")], watch=True, **TINY)
    assert result.exit_code == 5
    assert any("the images that arrived before epoch 2" in text for text in result.failures)
    assert len(scans.manifest_of(tmp_path / "run")) == 24


@pytest.mark.one_backend(trains=True)
def test_a_file_that_broke_leaves_at_the_next_epoch(monkeypatch, tmp_path):
    """A file that breaks is replaced during its epoch and dropped from later ones, exactly again.

    This holds without --watch, too.
    """
    write_pictures(tmp_path / "old", 8, 0)
    arguments = {"data": [str(tmp_path / "old")], "cache": "off", **TINY, "epochs": 3}
    reporter = Telling()
    gone = []

    def vanish():
        table = Manifest.read(tmp_path / "run" / "images.parquet")
        gone.append(table.paths(table.train_rows())[0])
        os.remove(gone[0])

    with monkeypatch.context() as patch:
        arriving_before(patch, {2: vanish})
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        out = str(tmp_path / "run")
        train(from_arguments(None, {"out": out, "snapshot_every": "1", **arguments}), reporter)
    whole = tmp_path / "run"
    assert [path.name for path in (whole / "images").iterdir()] == ["epoch-0003.parquet"]
    assert any("the next image of the order replaces it" in text for text in reporter.told)
    assert any(
        f"before epoch 3: 1 that can no longer be read were removed, the first is {gone[0]}" in text
        for text in reporter.told
    )
    assert len(scans.manifest_of(whole)) == 23
    expected, lines = result_arrays(whole), lines_without_time(whole)
    taken = snapshot.list_snapshots(whole / "snapshots")
    in_the_last_epoch = next(number for number, (step, _) in enumerate(taken) if step > lines[1]["step"])
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    make_interrupted(killed, taken[in_the_last_epoch][1].name)
    run_training(out=str(killed))
    assert_same_bytes(expected, result_arrays(killed))
    assert lines_without_time(killed) == lines


@pytest.mark.one_backend(trains=True)
def test_what_later_scans_noted_is_not_noted_earlier(monkeypatch, tmp_path):
    """A run killed before two files broke keeps both scans, and they give the same images."""
    write_pictures(tmp_path / "old", 8, 0)
    arguments = {"data": [str(tmp_path / "old")], "cache": "off", **TINY, "epochs": 4}

    def vanish(place):
        table = Manifest.read(tmp_path / "run" / "images.parquet")
        os.remove(table.paths(table.train_rows())[place])

    with monkeypatch.context() as patch:
        arriving_before(patch, {2: lambda: vanish(0), 3: lambda: vanish(5)})
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        run_training(out=str(tmp_path / "run"), snapshot_every="1", **arguments)
    run = tmp_path / "run"
    assert sorted(path.name for path in (run / "images").iterdir()) == ["epoch-0003.parquet", "epoch-0004.parquet"]
    make_interrupted(run, snapshot.list_snapshots(run / "snapshots")[1][1].name)
    run_training(out=str(run))
    assert sorted(path.name for path in (run / "images").iterdir()) == ["epoch-0003.parquet", "epoch-0004.parquet"]
    assert len(scans.manifest_of(run)) == 22
    assert len(scans.remembered(run)) == 24


@pytest.mark.one_backend
def test_what_comes_back_keeps_its_side_and_origin(watched):
    """Images that return after some epochs keep their split and origin: none moves to validation."""
    folder, manifest, watching, _ = watched
    rows = manifest.train_rows()[:6]
    gone = [sha.decode() for sha in manifest.sha256s[rows]]
    smaller = manifest.changed(manifest.table.slice(0, 0), gone)
    for place, path in enumerate(manifest.paths(rows)):
        target = Path(path)
        if place % 2:
            target = target.with_name(f"renamed-{target.name}")
            Path(path).rename(target)
    settled(folder)
    back = looked(watching, smaller, manifest)
    assert sorted(back.column("sha256").to_pylist()) == sorted(gone)
    assert set(back.column("side").to_pylist()) == {"train"}
    assert set(back.column("origin").to_pylist()) == {0}
    assert sum("renamed-" in path for path in back.column("path").to_pylist()) == 3
    assert smaller.changed(back, ()).digest() == manifest.digest()
    everything = scans.with_added(manifest, scans.make_scan(3, smaller, back, ()))
    assert len(everything) == len(manifest)
    assert sum("renamed-" in path for path in everything.table.column("path").to_pylist()) == 3


@pytest.mark.one_backend
def test_few_at_a_time_fall_to_validation_as_often_as_many(watched):
    """Arrivals in small groups go to validation as often as in one: splits depend on content alone.

    No scan adds a validation image to each class.
    """
    folder, manifest, watching, _ = watched
    before = len(manifest)
    for number in range(8):
        arrive(folder, 2, 2000 + 10 * number)
        manifest = manifest.changed(looked(watching, manifest), ())
    assert len(manifest) > before + 40  # a picture may be near images of both splits
    assert manifest.is_val.sum() < 0.35 * (len(manifest) - before)


@pytest.mark.one_backend
def test_a_scan_that_failed_late_is_not_found_later(monkeypatch, tmp_path):
    """A scan whose write failed after its rename is not found later, because no step trained on it."""

    manifest = table_of(write_pictures(tmp_path / "a", 4, 0), Reporter(quiet=True))
    scan = scans.make_scan(2, manifest, manifest.table.slice(0, 0), ())

    def refused(path):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "flush_directory", refused)
        with pytest.raises(OSError, match="Input/output"):
            scans.write_scan(tmp_path / "images", scan)
    assert scans.read_scans(tmp_path / "images") == {}


@pytest.mark.one_backend(trains=True)
def test_a_child_goes_on_in_its_parents_time(monkeypatch, tmp_path):
    """A child of an interrupted, grown parent with `keep` continues its rate and its pace."""
    write_pictures(tmp_path / "old", 8, 0)
    settled(tmp_path / "old")
    arguments = {"data": [str(tmp_path / "old")], "watch": True, **TINY, "epochs": 6}
    with monkeypatch.context() as patch:
        arriving_before(patch, {2: lambda: arrive(tmp_path / "old", 12, 500)})
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        parent = Path(run_training(out=str(tmp_path / "parent"), snapshot_every="1", **arguments).run)
    lines = runs.read_metrics(parent / "metrics.jsonl")
    third = next(
        folder.name for step, folder in snapshot.list_snapshots(parent / "snapshots") if step == lines[2]["step"]
    )
    make_interrupted(parent, third)
    with monkeypatch.context() as patch:
        arriving_before(patch, {2: lambda: arrive(tmp_path / "old", 12, 700)})
        child = run_training(
            str(parent), data=[str(tmp_path / "old")], watch=True, epochs=3, out=str(tmp_path / "child")
        ).run
    rates = [line["lr"] for line in runs.read_metrics(Path(child) / "metrics.jsonl")]
    expected = [line["lr"] for line in lines[3:]]
    assert rates[0] == pytest.approx(expected[0], rel=0.15)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=3e-5)


@pytest.mark.one_backend(trains=True)
def test_a_run_continues_without_a_file_that_the_cache_never_held(monkeypatch, tmp_path):
    """A continued run survives a missing file that the cache never held, as an uninterrupted one does."""
    write_pictures(tmp_path / "old", 8, 0)
    monkeypatch.setenv("KRESUME_CACHE", str(tmp_path / "cache"))
    arguments = {"data": [str(tmp_path / "old")], "cache_limit": "1KB", **TINY, "epochs": 3}
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "prune_snapshots", lambda *_: None)
        path = Path(run_training(out=str(tmp_path / "run"), snapshot_every="1", **arguments).run)
    make_interrupted(path, snapshot.list_snapshots(path / "snapshots")[1][1].name)
    table = Manifest.read(path / "images.parquet")
    os.remove(table.paths(table.val_rows())[0])
    os.remove(table.paths(table.train_rows())[0])
    run_training(out=str(path))
    assert len(runs.open_run(path).events("file broke")) == 2


@pytest.mark.one_backend(trains=True)
def test_a_mixture_whose_new_images_all_broke_goes_on(monkeypatch, tmp_path, pictures):
    """A run with --mix whose new images are all gone trains on the old ones, and a line says so."""
    shutil.copytree(pictures / "new", tmp_path / "new")
    parent = trained(tmp_path / "parent", data=[str(pictures / "old")], **TINY)
    reporter = Telling()
    arguments = {
        "add": [str(tmp_path / "new")],
        "mix": "1:1",
        "cache": "off",
        "epochs": 5,
        "lr": 1e-3,
        "val_split": 0.0,
    }
    with monkeypatch.context() as patch:
        arriving_before(patch, {2: lambda: shutil.rmtree(tmp_path / "new")})
        out = str(tmp_path / "run")
        train(from_arguments(parent, {"out": out, **arguments}), reporter)
    lines = runs.read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[1]["shares"]["origins"]["new"] == pytest.approx(0.5, abs=0.02)
    assert lines[-1]["shares"]["origins"] == {"old": 1.0}
    assert any("from here on an epoch uses every image once" in text for text in reporter.told)


@pytest.mark.one_backend(trains=True)
def test_a_validation_file_that_broke_ends_no_night(monkeypatch, tmp_path):
    """A broken validation file is named once, and the others are scored; with none left it is an error."""
    write_pictures(tmp_path / "old", 8, 0)
    arguments = {"data": [str(tmp_path / "old")], "cache": "off", **TINY, "epochs": 3}

    def vanish():
        table = Manifest.read(tmp_path / "run" / "images.parquet")
        os.remove(table.paths(table.val_rows())[0])

    with monkeypatch.context() as patch:
        arriving_before(patch, {2: vanish})
        path = Path(run_training(out=str(tmp_path / "run"), **arguments).run)
    counts = [line["all"]["images"] for line in runs.read_metrics(path / "metrics.jsonl")]
    assert counts == [counts[0], counts[0] - 1, counts[0] - 1]
    assert len(runs.open_run(path).events("file broke")) == 1

    def vanish_all():
        table = Manifest.read(tmp_path / "other" / "images.parquet")
        for file in table.paths(table.val_rows()):
            os.path.exists(file) and os.remove(file)

    with monkeypatch.context() as patch:
        arriving_before(patch, {2: vanish_all})
        with pytest.raises(ImagesError, match="no validation image can be read any more"):
            run_training(out=str(tmp_path / "other"), **arguments)


@pytest.mark.one_backend(trains=True)
def test_nothing_to_watch_is_said(tmp_path, pictures):
    """`--watch` without a source is an error."""
    parent = trained(tmp_path / "run", data=[str(pictures / "old")], **TINY)
    with pytest.raises(UsageError, match="--watch looks for new images in the folders"):
        run_training(parent, watch=True, out=str(tmp_path / "child"))


@pytest.mark.parametrize("made", [(), CLASSES])
@pytest.mark.one_backend(trains=True)
def test_an_inbox_may_begin_empty(monkeypatch, tmp_path, pictures, made):
    """A watched inbox may start empty, with or without class folders, and its rate is that of added images.

    Without --watch an empty one is an error. What the run could not train is named at its end and in its report: the terminal
    may be gone.
    """
    parent = trained(tmp_path / "parent", data=[str(pictures / "old")], **TINY)
    for name in ("", *made):
        (tmp_path / "inbox" / name).mkdir()
    arguments = {"add": [str(tmp_path / "inbox")], "epochs": 2, "out": str(tmp_path / "run")}
    with pytest.raises(ImagesError, match=r"inbox is empty|contain no images"):
        run_training(parent, **arguments)

    def come():
        arrive(tmp_path / "inbox", 3, 300)
        write_pictures(tmp_path / "inbox", 2, 900, ("triangle",))

    with monkeypatch.context() as patch:
        arriving_before(patch, {2: come})
        result = run_training(parent, watch=True, **arguments)
    assert len(scans.manifest_of(tmp_path / "run")) == 24 + 9
    waits = "triangle (2 images of a class that the model does not have)"
    assert f"waits:  {waits} in the watched sources, for the next generation\n" in str(result)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "1 file or class in the watched sources waits for the next generation." in page
    assert "2 images of a class that the model does not have" in page
