"""Tests mixing of old and new: exact shares, no early repetition, no validation image, seekable."""

import re
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

import kresume
from kresume import runs
from kresume.errors import UsageError
from kresume.images import mixing
from kresume.images.manifest import Manifest, schema
from kresume.images.mixing import make_order, parse_mix
from kresume.images.order import Order
from tests.helpers.runs import TINY, kill_at_every_snapshot, run_training, trained


def table(labels, origins, is_val, classes):
    """Makes a manifest of these rows; all other columns are empty."""
    import pyarrow as pa

    rows = [
        {
            "sha256": f"{row:064x}",
            "label": classes[label],
            "origin": int(origin),
            "side": "val" if val else "train",
        }
        for row, (label, origin, val) in enumerate(zip(labels, origins, is_val, strict=True))
    ]
    return Manifest.from_table(pa.Table.from_pylist(rows, schema=schema()), classes)


@some.composite
def manifests(draw):
    """Draws a small manifest of old, new and validation images; generation 1 is new."""
    count = draw(some.integers(4, 60))
    classes = tuple("abcd"[: draw(some.integers(1, 4))])
    labels = draw(some.lists(some.integers(0, len(classes) - 1), min_size=count, max_size=count))
    origins = [0, 1, *draw(some.lists(some.integers(0, 1), min_size=count - 2, max_size=count - 2))]
    is_val = [False, False, *draw(some.lists(some.booleans(), min_size=count - 2, max_size=count - 2))]
    return table(labels, origins, is_val, classes)


ways = some.sampled_from(
    [
        ("concat", None, "none"),
        ("1:1", None, "none"),
        ("1:3", None, "class"),
        ("5:1", None, "none"),
        (None, 0.25, "none"),
        (None, 0.5, "class"),
        (None, None, "class"),
    ]
)


def order_of(manifest, way, seed=0, batch_size=4):
    mix, replay, balance = way
    return make_order(manifest, seed, batch_size, mix, replay, balance, generation=1)


@given(manifests(), ways, some.integers(0, 2**31), some.integers(1, 9), some.integers(0, 200))
@settings(max_examples=80, deadline=None)
@pytest.mark.one_backend
def test_any_step_is_what_the_whole_row_has_there(manifest, way, seed, batch_size, step):
    """The batch at any step equals that of the whole stream, for two orders made separately."""
    order, other = order_of(manifest, way, seed, batch_size), order_of(manifest, way, seed, batch_size)
    whole = np.concatenate([order.batch(each) for each in range(step + 1)])
    assert whole[-batch_size:].tolist() == other.batch(step).tolist()
    assert (
        order.take(3, 2 * order.n).tolist()
        == np.concatenate([order.take(3 + i, 1) for i in range(2 * order.n)]).tolist()
    )


@given(manifests(), ways, some.integers(0, 5))
@settings(max_examples=80, deadline=None)
@pytest.mark.one_backend
def test_no_validation_image_ever_trains(manifest, way, epoch):
    """Only training rows are drawn, for any mixture."""
    order = order_of(manifest, way)
    rows = manifest.train_rows()[order.take(epoch * order.n, order.n)]
    assert not manifest.is_val[rows].any()


@given(manifests(), ways, some.integers(0, 5))
@settings(max_examples=80, deadline=None)
@pytest.mark.one_backend
def test_each_stream_comes_whole_before_it_repeats(manifest, way, seed):
    """Within an origin and class, no image is drawn n + 1 times before all are drawn n times."""
    order = order_of(manifest, way, seed)
    rows = manifest.train_rows()
    dealt = rows[order.take(0, 6 * order.n)]
    keys = manifest.origins[rows] * 10 + manifest.labels[rows]
    for key in np.unique(keys):
        members = rows[keys == key]
        # The shuffle within an epoch mixes streams, so whole epochs are compared.
        for epochs in range(1, 7):
            counts = [np.count_nonzero(dealt[: epochs * order.n] == row) for row in members]
            assert max(counts) - min(counts) <= 1


@given(manifests(), ways, some.integers(0, 4))
@settings(max_examples=80, deadline=None)
@pytest.mark.one_backend
def test_an_epochs_shares_are_the_ones_announced(manifest, way, epoch):
    """An epoch's counts by class are those of `shares` and as requested, each stream rounded down or up.

    Those by origin are exact where origins are asked for.
    """
    order = order_of(manifest, way)
    rows = manifest.train_rows()
    dealt = rows[order.take(epoch * order.n, order.n)]
    shares = order.shares()
    assert shares.images == order.n == len(dealt)
    assert sum(shares.classes.values()) == pytest.approx(order.n) == sum(shares.origins.values())
    new = int((manifest.origins[dealt] == 1).sum())
    exact = not (way[2] == "class" and way[0] in {None, "concat"})
    assert shares.origins.get("new", 0) == pytest.approx(new, abs=0 if exact else len(manifest.classes))
    counted = np.bincount(manifest.labels[dealt], minlength=len(manifest.classes))
    assert (np.abs(counted - list(shares.classes.values())) < 2).all()
    streams = len(manifest.classes)
    mix, replay, balance = way
    if mix not in {None, "concat"}:
        assert abs(new - parse_mix(mix)[1] * order.n) <= streams
    if replay is not None and balance == "none":
        old = int((manifest.origins[rows] == 0).sum())
        assert abs((len(dealt) - new) - replay * old) <= streams
    if balance == "class" and mix is None:
        present = np.bincount(manifest.labels[rows], minlength=streams) > 0
        assert np.ptp(counted[present]) <= 2


@given(some.lists(some.floats(0, 40), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None)
@pytest.mark.one_backend
def test_shares_are_rounded_so_that_their_average_is_exact(shares):
    """Each epoch has each share rounded down or up and the same number of images; none is starved at any length."""
    shares = np.array(shares) + (np.ceil(sum(shares)) + 1 - sum(shares)) / len(shares)
    counts = mixing._counts(shares)
    assert (counts.sum(axis=1) == round(shares.sum())).all()
    assert ((counts >= np.floor(shares - 1e-6)) & (counts <= np.ceil(shares + 1e-6))).all()
    drift = np.cumsum(counts, axis=0) - shares * np.arange(1, mixing.PERIOD + 1)[:, None]
    assert np.abs(drift).max() < 5
    assert np.abs(drift[-1]).max() < 2


@pytest.mark.parametrize(
    "way", [(None, 0.1, "none"), (None, 0.1, "class"), ("1:20", None, "none"), ("1:20", None, "class")]
)
@pytest.mark.one_backend
def test_no_old_image_is_forgotten_by_rounding(way):
    """Ten old classes of six images and one of a single image: each is drawn, though each epoch has few of them."""
    labels = [label for label in range(10) for _ in range(6)] + [10] + [0, 1] * 40
    manifest = table(labels, [0] * 61 + [1] * 80, [False] * len(labels), tuple("abcdefghijk"))
    order = order_of(manifest, way)
    drawn = np.bincount(order.take(0, 150 * order.n), minlength=len(labels))
    assert drawn[:61].min() > 0
    if way[2] == "none":  # else classes with new images need few old ones
        assert drawn[:60].max() <= 2 * drawn[:60].min()


@pytest.mark.one_backend
def test_one_of_few_old_images_is_drawn_where_the_share_rounds_to_none():
    """`--mix 1:100` of 40 old and 40 new images asks for 0.8 old ones: one."""
    manifest = table([0] * 80, [0] * 40 + [1] * 40, [False] * 80, ("a",))
    assert order_of(manifest, ("1:100", None, None)).shares().origins == {"old": 1, "new": 79}
    assert order_of(manifest, (None, 0.01, None)).shares().origins == {"old": 1, "new": 40}
    assert order_of(manifest, (None, 0.0, None)).shares().origins == {"new": 40}


@pytest.mark.one_backend
def test_a_quarter_of_the_old_images_has_come_whole_after_four_epochs():
    """With --replay 0.25, each epoch has another quarter of the old images and every new image."""
    manifest = table([0] * 120, [0] * 80 + [1] * 40, [False] * 120, ("a",))
    order = order_of(manifest, (None, 0.25, "none"))
    assert order.n == 60
    old = [index for index in order.take(0, 4 * 60).tolist() if index < 80]
    assert sorted(old) == list(range(80))
    assert all(len(set(order.take(60 * epoch, 60).tolist()) & set(range(80, 120))) == 40 for epoch in range(4))


@pytest.mark.one_backend
def test_concat_is_the_plain_order():
    """Without an option the order of the images is the plain one."""
    manifest = table([0, 1] * 10, [0] * 10 + [1] * 10, [False] * 20, ("a", "b"))
    for way in ((None, None, None), ("concat", None, "none")):
        assert order_of(manifest, way).take(7, 50).tolist() == Order(0, 20, 4).take(7, 50).tolist()


@pytest.mark.parametrize(
    ("way", "origins", "words"),
    [
        (("1", None, None), [0, 1], "give concat or OLD:NEW"),
        (("0:1", None, None), [0, 1], "both shares must be above 0"),
        (("1:1", 0.5, None), [0, 1], "both set the number of old images"),
    ],
)
@pytest.mark.one_backend
def test_what_cannot_be_mixed_says_so(way, origins, words):
    """Each contradiction between options is one error."""
    with pytest.raises(UsageError, match=words):
        order_of(table([0, 0], origins, [False, False], ("a",)), way)


@pytest.mark.one_backend
def test_images_of_one_age_are_drawn_once_each():
    """Where all are old, or all new, there is nothing to mix: the order is the plain one, and the reason can be told."""
    for origins, age in (([0, 0], "old"), ([1, 1], "new")):
        manifest = table([0, 0], origins, [False, False], ("a",))
        for mix, replay, asked in (
            ("1:3", None, "--mix 1:3"),
            (None, 0.5, "--replay 0.5"),
            ("concat", 0.5, "--replay 0.5"),
        ):
            assert order_of(manifest, (mix, replay, None)).take(0, 8).tolist() == Order(0, 2, 4).take(0, 8).tolist()
            assert mixing.unmixed(manifest, mix, replay, 1) == f"{asked}: all 2 training images are {age}"
    both = table([0, 0], [0, 1], [False, False], ("a",))
    assert not mixing.unmixed(both, "1:3", None, 1)
    assert not mixing.unmixed(both, None, None, 1)


OLD = r"all 2\d training images are old"
CHILDREN = [  # the parent's option, the child's options, the expected note or error
    ({"mix": "1:1"}, {"epochs": 2}, f"note: .*{OLD}"),
    ({"replay": 0.5}, {"epochs": 2}, f"note: .*{OLD}"),
    ({"mix": "1:1"}, {"add": "new", "replay": 0.5}, ""),
    ({"replay": 0.5}, {"add": "new", "mix": "1:2"}, ""),
    ({"replay": 0.5}, {"add": "new"}, ""),
    ({"mix": "1:1"}, {"mix": "1:1", "epochs": 2}, f"{OLD}: leave it out"),
    ({"replay": 0.5}, {"replay": 0.2, "epochs": 2}, f"{OLD}: leave it out"),
]


@pytest.mark.one_backend(trains=True)
def test_a_parents_mixture_stops_no_child(tmp_path, pictures):
    """An option of the parent gives way to the child's own; where nothing is new, a note says that nothing is mixed."""
    trained(tmp_path / "first", data=[str(pictures / "old")], **TINY)
    begun = {"add": [str(pictures / "val")], "epochs": 1}
    for option in ({"mix": "1:1"}, {"replay": 0.5}):
        run_training(str(tmp_path / "first"), out=str(tmp_path / next(iter(option))), **begun, **option)
    for parent, asked, words in CHILDREN:
        sources = {"add": [str(pictures / asked["add"])]} if "add" in asked else {}
        plan = partial(
            kresume.plan, str(tmp_path / next(iter(parent))), trial=False, **{"lr": 1e-3, **asked, **sources}
        )
        if words.endswith("leave it out"):
            with pytest.raises(UsageError, match=words):
                plan()
        elif words:
            assert re.search(words, str(plan()))
            assert plan().shares.images == plan().images["train"]
        else:
            assert "training images are old" not in str(plan())
    result = run_training(str(tmp_path / "mix"), epochs=1, lr=1e-3, out=str(tmp_path / "again"))
    assert runs.open_run(result.run).record.options["mix"] == "1:1"


@pytest.mark.one_backend(trains=True)
def test_a_mixed_run_continues_exactly_and_records_its_shares(tmp_path, pictures):
    """A run killed in the middle of a mixed epoch continues exactly and records its shares.

    Every line of metrics.jsonl has them.
    """
    trained(tmp_path / "parent", data=[str(pictures / "old")], **TINY)
    arguments = {"from_": str(tmp_path / "parent"), "add": [str(pictures / "new")], "epochs": 2, "mix": "1:2"}
    assert len(kill_at_every_snapshot(tmp_path, [3, -3], **arguments)) == 2
    lines = runs.read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [round(line["shares"]["origins"]["old"], 1) for line in lines] == [0.3, 0.3]
    assert sum(lines[0]["shares"]["classes"].values()) == pytest.approx(1.0)
    options = {"add": [str(pictures / "new")], "replay": 0.5, "epochs": 3, "quiet": True}
    replayed = kresume.plan(str(tmp_path / "parent"), **options)
    epoch = replayed.shares.images
    assert epoch < replayed.images["train"]
    assert replayed.amount.steps == -(-3 * epoch // 5)
    assert "images an epoch: old" in str(replayed)
    larger = kresume.plan(str(tmp_path / "parent"), batch_size=10, **options)
    assert any(f"had 5: {epoch / 5:.1f} -> {epoch / 10:.1f} steps an epoch" in note for note in larger.notes)
