"""Tests the command line: help, one-line errors with a remedy, exit codes, nothing half written."""

import json
import subprocess
import sys

import pytest

from kresume import cli
from kresume.errors import UsageError
from kresume.options import given, lookup, resolve, settings, table


def run(*arguments):
    """Runs a command line in this process and returns its exit code."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    return left.value.code


def refused(capsys, code, *arguments):
    """Returns the one line of an error after checking the exit code."""
    assert run(*arguments) == code
    lines = capsys.readouterr().err.strip().splitlines()
    error = [line for line in lines if line.startswith("kresume: ")]
    assert len(error) == 1, lines
    return error[0]


@pytest.mark.one_backend
@pytest.mark.parametrize("command", sorted(cli.cli.commands))
def test_every_command_teaches(capsys, command):
    """Every command has help with an example."""
    assert run(command, "--help") == 0
    out = capsys.readouterr().out
    assert f"kresume {command}" in out
    assert len(out.splitlines()) > 5


@pytest.mark.one_backend
def test_help_shows_the_daily_options_and_help_all_every_one(capsys):
    """--help shows a dozen common options; --help-all shows every option, grouped."""
    run("train", "--help")
    short = capsys.readouterr().out
    run("train", "--help-all")
    full = capsys.readouterr().out
    flags = {lookup.flag_of(name) for name in table.TrainConfig.model_fields}
    assert {flag for flag in flags if f"\n  {flag} " in full} == flags
    daily = {flag for flag in flags if f"\n  {flag} " in short}
    assert {"--from", "--data", "--add", "--lr", "--out", "--epochs", "--model"} <= daily
    assert len(daily) < 16


@pytest.mark.one_backend
def test_help_and_usage_errors_import_nothing_heavy():
    """Help and usage errors import no framework, so that they appear at once."""
    script = (
        "import sys\n"
        "from kresume import cli\n"
        "for arguments in (['--help'], ['train', '--help'], ['train', '--lr0', '1'], ['log', 'nowhere'], ['train']):\n"
        "    try:\n"
        "        cli.main(arguments)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "print(sorted({'tensorflow', 'keras', 'jax', 'sklearn', 'pyarrow'} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train"], 2, "no images to train on: give --data"),
        (["train", "--resume"], 2, "no option --resume: an interrupted run continues by the same command"),
        (["train", "--resume-from-checkpoint=x"], 2, "that is --from PATH"),
        (["train", "--imgsz", "64"], 2, "that is --image-size"),
        (["train", "--epoch", "3"], 2, "did you mean --epochs?"),
        (["train", "--name", "x"], 2, "no option --name: that is --out DIR"),
        (["train", "--ampp"], 2, "no option --ampp: did you mean --amp? that is --precision mixed_bfloat16"),
        (["train", "--hog", "x"], 2, "no option --hog: see kresume train --help"),
        (["train", "--average", "half"], 2, "--average half: give the share of the weights with which the run began"),
        (["train", "runs/1-signs"], 2, "--out runs/1-signs continues that run"),
        (["trian"], 2, "no command trian: did you mean train?"),
        (["resume", "runs/1-signs"], 2, "no command resume: that is kresume train"),
        (["eval", "old"], 2, "the form is `kresume eval [options] RUN|CKPT|SAVEDMODEL`"),
        (["data", "check"], 2, "see kresume data check --help"),
        (["train", "--data", "nowhere"], 1, "no such path: nowhere"),
        (["train", "--data", "s*.tar"], 1, "patterns are not expanded: give the folder of these files"),
        (["train", "--data", "empty"], 1, "empty is empty"),
        (["train", "--data", "old/circle"], 1, "no class folders"),
        (["train", "--from", "nowhere", "--data", "old"], 1, "no checkpoint at nowhere"),
        (["train", "--from", "runs/ckpt", "--data", "old"], 1, "add --or-new"),
        (["train", "--from", "gone/ckpt", "--or-new", "--data", "old"], 2, "is the drive mounted?"),
        (["train", "--from", "notes.txt", "--data", "old"], 1, "not a checkpoint that kresume can read"),
        (["train", "--from", "cut.keras", "--data", "old"], 1, "truncated or damaged"),
        (["train", "--from", "old", "--out", "old"], 2, "a child run cannot replace its parent"),
        (["train", "--data", "old", "--out", "old"], 1, "which is not a run"),
        (["train", "--data", "old", "--backend", "torch"], 2, "--backend"),
        (["train", "--data", "old", "--lr", "fast"], 2, "--lr"),
        (["train", "--data", "old", "--lr", "-1"], 2, "above 0"),
        (["train", "--data", "old", "--epochs", "0"], 2, "at least 1"),
        (["train", "--data", "old", "--image-size", "big"], 2, "give N or HEIGHTxWIDTH"),
        (
            ["train", "--data", "old", "--config", "typo.yaml"],
            2,
            "no option learning-rat: did you mean learning-rate? that is lr F",
        ),
        (["train", "--data", "old", "--set", "epochz=3"], 2, "did you mean epochs?"),
        (["train", "--data", "old", "--model", "resnet50"], 1, "did you mean applications:ResNet50?"),
        (["train", "--data", "old", "--model", "mymodel"], 1, "use convnet, applications:NAME"),
        (["train", "--data", "old", "--classes", "a,b"], 1, "classes that the model does not know"),
        (["train", "--data", "old", "--classes", "a,a"], 2, "stands twice: a"),
        (["train", "--data", "old", "--snapshot-every", "often"], 2, "a whole number of steps"),
        (["train", "--data", "old", "--monitor", "val_los"], 2, "did you mean val_loss?"),
        (["train", "--data", "old", "--mixup", "-1"], 2, "at least 0"),
        (["train", "--data", "old", "--seed", "-1"], 2, "from 0 to"),
        (["train", "--data", "old", "--metric", "nosuch"], 2, "Keras has no such metric"),
        (["train", "--data", "old", "--cache", "gs://bucket/cache"], 2, "on a mounted drive"),
        (["train", "--data", "old", "--out", "nowhere://bucket/run"], 2, "nowhere:// is unknown"),
        (
            ["train", "--data", "old", "--freeze", "nothing*"],
            2,
            "--freeze nothing* matches no layer with weights; the model has conv2d",
        ),
        (["data", "scan", "old", "-o", "/proc/none/m.parquet"], 1, "cannot be written"),
        (["train", "--out", "runs/none"], 2, "no run to continue"),
        (["eval", "nowhere", "--data", "old"], 1, "no checkpoint at nowhere"),
        (["inspect", "notes.txt"], 1, "not a checkpoint that kresume can read"),
        (["log", "nowhere"], 1, "no run at nowhere"),
        (["demo", "--dir", "old"], 1, "is not empty"),
    ],
)
def test_a_mistake_is_one_line_with_the_way_on(workplace, capsys, arguments, code, words):
    """A mistake is one line with location, expectation and remedy; its exit code fits; no file is left."""
    (workplace / "empty").mkdir()
    (workplace / "notes.txt").write_text("hello")
    (workplace / "cut.keras").write_bytes(b"PK\x03\x04 and no more")
    (workplace / "typo.yaml").write_text("learning-rat: 0.1\n")
    before = sorted(path.name for path in workplace.iterdir())
    assert words in refused(capsys, code, *arguments)
    assert sorted(path.name for path in workplace.iterdir()) == before


@pytest.mark.one_backend
def test_ctrl_c_before_training_is_exit_130(capsys, monkeypatch):
    """Ctrl-C before training exits with 130 and prints no traceback."""
    from kresume.reports import lineage

    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(lineage, "lineage", interrupt)
    assert "Ctrl-C" in refused(capsys, 130, "log")


@pytest.mark.one_backend
def test_flags_win_over_set_which_wins_over_the_file(tmp_path):
    """Flags win over --set, which wins over the file."""
    (tmp_path / "story.yaml").write_text("lr: 1e-4\nepochs: 3\nadd: inbox/\nbatch-size: 8\n")
    made = resolve.resolve({"epochs": 5, "data": ()}, str(tmp_path / "story.yaml"), ["batch_size=16", "epochs=4"])
    assert given.given(made) == {"lr": 1e-4, "epochs": 5, "add": ["inbox/"], "batch_size": 16}


@pytest.mark.one_backend
def test_a_command_can_be_written_down():
    """`to_command` returns the command line that a shell needs."""
    made = resolve.from_arguments("runs/1 a", {"add": ["x", "y"], "lr": 1e-4, "or_new": True})
    assert given.to_command(made) == "kresume train --from 'runs/1 a' --or-new --add x --add y --lr 0.0001"


@pytest.mark.one_backend
def test_pythons_keywords_are_checked_like_flags():
    """A typo in a keyword argument is an error that names the nearest option."""
    with pytest.raises(UsageError, match="did you mean epochs"):
        resolve.from_arguments(None, {"epoch": 3})
    with pytest.raises(UsageError, match="--lr slow"):
        resolve.from_arguments(None, {"lr": "slow"})
    assert resolve.from_arguments(None, {"classes": ["a", "b"], "image_size": (3, 4)}).classes == "a,b"


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mix: 1:1", {"mix": "1:1"}),
        ("cache: off", {"cache": "off"}),
        ("cache: on", {"cache": "auto"}),
        ("cache: false", {"cache": "off"}),
        ("cache: here", {"cache": "here"}),
        ("exact: on", {"exact": "on"}),
        ("snapshot-every: 200", {"snapshot_every": "200"}),
        ("grow: [5, 6]", {"grow": ["5", "6"]}),
        ("grow: 1", {"grow": ["1"]}),
        ("grow: yes", {"grow": True}),
        ("grow: [yes, no]", {"grow": ["yes", "no"]}),
        ("classes: [no, yes]", {"classes": "no,yes"}),
        ("classes: [2024-01-01, 1e3, 0x10]", {"classes": "2024-01-01,1e3,0x10"}),
        ("classes: {cat: 1, dog: 0}", {"classes": "dog,cat"}),
        ("classes: {0: cat, 1: dog}", {"classes": "cat,dog"}),
        ("classes: {5: 1, 7: 0}", {"classes": "7,5"}),
        ("classes: {0: 7, 1: 5}", {"classes": "7,5"}),
        ("partial: on", {"partial": True}),
        ("lr: 1e-4", {"lr": 1e-4}),
        ("epochs: 1e2", {"epochs": 100}),
        ("image-size: [180, 240]", {"image_size": "180x240"}),
        ("mlflow: off", {"mlflow": "off"}),
        ("lr: ~", {}),
    ],
)
def test_yaml_means_what_the_command_line_means(tmp_path, text, expected):
    """YAML 1.1 has numbers in base 60, and words for switches, which no option means."""
    (tmp_path / "story.yaml").write_text(text)
    assert given.given(resolve.resolve({}, str(tmp_path / "story.yaml"))) == expected
    key, _, value = text.partition(": ")
    assert given.given(resolve.resolve({}, None, [f"{key}={value}"])) == expected


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr: 1\nlr: 2", "lr stands twice, in the lines 1 and 2"),
        ("{lr: 1, lr: 2}", "lr stands twice"),
        ("classes: {0: a, 1: b, 2: a}", "a stands twice"),
        ("classes: {2: a, 0: b, 1: a}", "a stands twice"),
        ("lr-scale: 1\nlr_scale: 2", "stands twice"),
        ("lr: inf", "--lr inf: give a number above 0"),
        ("lr: nan", "--lr nan: give a number above 0"),
        ("lr-scale: 0", "--lr-scale 0.*above 0"),
        ("lr: on", "--lr on"),
        ("partial: maybe", "--partial maybe"),
        ("on-missing: no", "--on-missing no"),
    ],
)
def test_yaml_that_means_nothing_is_refused(tmp_path, text, said):
    (tmp_path / "story.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        resolve.resolve({}, str(tmp_path / "story.yaml"))


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"grow": [5, 6]}, {"grow": ["5", "6"]}),
        ({"grow": 1}, {"grow": ["1"]}),
        ({"grow": True}, {"grow": True}),
        ({"snapshot_every": 200}, {"snapshot_every": "200"}),
        ({"cache": False}, {"cache": "off"}),
        ({"cache": True}, {"cache": "auto"}),
        ({"exact": True}, {"exact": "on"}),
        ({"mlflow": False}, {"mlflow": "off"}),
        ({"classes": [1, 2]}, {"classes": "1,2"}),
    ],
)
def test_pythons_values_mean_what_flags_mean(value, expected):
    assert given.given(resolve.from_arguments(None, value)) == expected
    with pytest.raises(UsageError, match="give a number"):
        resolve.from_arguments(None, {"epochs": True})


@pytest.mark.one_backend
def test_every_story_in_configs_is_valid(request):
    """The YAML files in configs/ parse, and their headers give the command."""
    stories = sorted((request.config.rootpath / "configs").glob("*.yaml"))
    assert len(stories) == 3
    for story in stories:
        assert given.given(resolve.resolve({}, str(story)))
        assert f"kresume train --config configs/{story.name}" in story.read_text()
    json.dumps([given.given(resolve.resolve({}, str(story))) for story in stories])


@pytest.mark.one_backend
@pytest.mark.parametrize("command", ["eval", "inspect"])
def test_an_option_of_another_command_is_called_that(capsys, command):
    """An option of another command is named as such.

    `eval` needs no optimizer; suggesting the nearest name would mislead.
    """
    error = refused(capsys, 2, command, "somewhere", "--optimizer", "adam")
    assert "no option --optimizer" in error
    assert "kresume train" in error


@pytest.mark.one_backend
def test_defaults_are_written_down_once():
    """An option's help states its default if `settings` has a single value for it, else not."""
    from dataclasses import fields

    names = {field.name for field in fields(settings.Settings)}
    assert names <= set(table.TrainConfig.model_fields)
    said = {name for name, field in table.TrainConfig.model_fields.items() if "{default}" in field.description}
    assert said == names
    helps = {name: lookup.help_of(name) for name in table.TrainConfig.model_fields}
    assert not [name for name, text in helps.items() if "{" in text or "None" in text]
    assert helps["batch_size"].endswith("Default 32.")
    assert helps["mixup"].endswith("Default off.")
    assert settings.settings_of(resolve.resolve({"batch_size": 8})).batch_size == 8


@pytest.mark.one_backend
def test_every_default_is_a_value_that_its_option_takes():
    """A default passes the checks of the command line: type, range and form."""
    from dataclasses import asdict

    made = resolve.resolve(asdict(settings.DEFAULTS))
    assert settings.settings_of(made) == settings.DEFAULTS
