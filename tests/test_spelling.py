"""Tests that messages spell an option as the user gave it: a flag or a Python argument."""

import pytest

import kresume
from kresume import cli
from kresume.errors import UsageError
from kresume.options.resolve import parse_bytes
from kresume.spelling import as_argument, as_flag, in_bytes, joined, option, respelled, setting, spelled


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("name", "value", "flag", "argument"),
    [
        ("on-missing", "drop", "--on-missing drop", "on_missing='drop'"),
        ("lr", 0.001, "--lr 0.001", "lr=0.001"),
        ("lr", 0.12345678, "--lr 0.12345678", "lr=0.12345678"),
        ("steps", 12345678, "--steps 12345678", "steps=12345678"),
        ("watch", True, "--watch", "watch=True"),
        ("data", None, "--data", "data="),
        ("import", "layers.py", "--import layers.py", "imports=['layers.py']"),
        ("from", "ckpt/", "--from ckpt/", "'ckpt/' as the first argument"),
    ],
)
def test_an_option_in_both_spellings(name, value, flag, argument):
    """The outermost entry point decides the spelling; flags are the default."""
    assert option(name, value) == as_flag(name, value) == flag
    assert as_argument(name, value) == argument
    with spelled(as_argument):
        assert option(name, value) == argument
        with spelled(as_flag):
            assert option(name, value) == argument
    assert option(name, value) == flag


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("name", "value", "flag", "argument"),
    [
        ("watch", False, "--no-watch", "watch=False"),
        ("data", ["a", "b"], "--data a --data b", "data=['a', 'b']"),
        ("data", ("a",), "--data a", "data='a'"),
        ("import", ["a.py", "b.py"], "--import a.py --import b.py", "imports=['a.py', 'b.py']"),
        ("lr", 0.5, "--lr 0.5", "lr=0.5"),
    ],
)
def test_a_setting_in_both_spellings(name, value, flag, argument):
    """A list has each of its values, a switch that is off is spelled as such."""
    assert setting(name, value) == flag
    with spelled(as_argument):
        assert setting(name, value) == argument
        assert joined([argument, "epochs=2"]) == f"{argument}, epochs=2"


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("recorded", "in_python"),
    [
        ("--epochs", "epochs="),
        ("--lr-scale 0.1", "lr_scale=0.1"),
        ("--classes, 2 of them new", "classes=, 2 of them new"),
        ("the rate that --model compiles", "the rate that model= compiles"),
        ("on 8 old images: 0-1 0.20, -1-1 0.90", "on 8 old images: 0-1 0.20, -1-1 0.90"),
    ],
)
def test_a_recorded_reason_in_both_spellings(recorded, in_python):
    """A record holds flags, whoever made it; who reads it gets the own spelling."""
    assert respelled(recorded) == recorded
    with spelled(as_argument):
        assert respelled(recorded) == in_python


@pytest.mark.one_backend(trains=True)
def test_a_plan_is_spelled_as_who_asked_for_it(workplace):
    """A plan of Python names arguments, whenever it is printed; what a run records of it names flags."""
    asked = {"data": "old", "image_size": 12, "epochs": 2, "lr": 0.01, "pixels": "0-1", "quiet": True}
    plan = kresume.plan(None, **asked)
    assert "--" not in str(plan)
    assert "pixels:   0-1 (pixels=)" in str(plan)
    assert "data='old', image_size='12', pixels='0-1', epochs=2" in str(plan)
    assert (plan.rate.reason, plan.amount.reason, plan.pixels_reason) == ("--lr", "--epochs", "--pixels")
    assert "speller" not in plan.as_dict()
    with spelled(as_flag):
        assert "--data old --image-size 12 --pixels 0-1 --epochs 2" in str(kresume.plan(None, **asked))


@pytest.mark.one_backend
def test_sizes():
    """Two digits or more, and no "1,000 MB" where a GB begins."""
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 9_949: "9.9 kB", 9_950: "10 kB", 999_499: "999 kB"}
    sizes |= {999_500: "1.0 MB", 50e9: "50 GB", 1.25e9: "1.2 GB", 5e12: "5,000 GB"}
    assert {count: in_bytes(count) for count in sizes} == sizes


@pytest.mark.one_backend
def test_sizes_are_read_with_every_usual_unit():
    sizes = {"0": 0, "500MB": 500e6, "50G": 50e9, "1.5 tb": 1.5e12, "64kib": 2**16, "48GiB": 48 * 2**30, "2000000": 2e6}
    assert {text: parse_bytes(text) for text in sizes} == sizes


WRONG = [
    {"lr": 0.1, "lr_scale": 0.5},
    {"seed": -1},
    {"image_size": "4x"},
    {"image_size": 0},
    {"epochs": 0},
    {"replay": 2.0},
    {"val_split": 1.0},
    {"cache_limit": "much"},
    {"cache_limit": "12"},
    {"cache_limit": "-1GB"},
    {"cache_limit": "5GBB"},
    {"watch": True},
    {"interpolation": "cubic"},
    {"resize": "squeeze"},
    {"lr_schedule": "wavy"},
    {"mix": "1:"},
    {"augment": "wild"},
]


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_python_is_told_of_arguments_and_the_command_line_of_flags(workplace, capsys, arguments):
    """`kresume.plan` and `kresume plan` give the same message, each in its own spelling."""
    data = {} if "watch" in arguments else {"data": "old"}
    with pytest.raises(UsageError) as refused:
        kresume.plan(
            None, image_size=12, quiet=True, **data, **arguments
        ) if "image_size" not in arguments else kresume.plan(None, quiet=True, **data, **arguments)
    name = next(iter(arguments))
    assert f"{name}=" in str(refused.value)
    assert "--" not in str(refused.value)
    flags = [
        word
        for key, value in {**data, "image_size": 12, **arguments}.items()
        for word in (f"--{key.replace('_', '-')}", *([] if value is True else [str(value)]))
    ]
    with pytest.raises(SystemExit) as left:
        cli.main(["plan", *flags])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert f"--{name.replace('_', '-')}" in told
