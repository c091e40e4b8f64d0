"""Tests scripts that call `fit` several times with one folder of backups."""

import runpy
import textwrap
import uuid

import pytest

from kresume.drop_in import fit_of_script
from kresume.training.loop import callback_logs

BEGIN = """
import hashlib, os
import keras, numpy as np, kresume
keras.utils.set_random_seed(0)
x = np.random.default_rng(0).random((4, 5)).astype("float32")
y = np.arange(4) % 3

class Killed(BaseException):
    pass

class Die(keras.callbacks.Callback):
    def __init__(self, phase):
        super().__init__()
        self.phase = phase
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        trained.append((self.phase, epoch))
        if kill == (self.phase, epoch):
            raise Killed
    def on_train_batch_end(self, batch, logs=None):
        if kill == (self.phase, self.epoch + 0.5) and batch == 1:
            raise Killed
    def get_state(self):
        return {}
    def set_state(self, state):
        pass

freq = "epoch"

def build():
    base = keras.Sequential([keras.Input((5,)), keras.layers.Dense(4)])
    return keras.Sequential([base, keras.layers.Dropout(0.2), keras.layers.Dense(3, "softmax")])

def prepare(model, rate, whole):
    model.layers[0].trainable = whole
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", run_eagerly=True)

def train(model, rate, whole, epochs, phase):
    prepare(model, rate, whole)
    model.fit(x, y, 4, epochs, 0, [kresume.BackupAndRestore(folder), Die(phase)], shuffle=False)

trained = []
model = build()
"""
END = """
digest = hashlib.sha256(b"".join(np.asarray(variable).tobytes() for variable in model.variables)).hexdigest()
"""
HEAD = """
prepare(model, 1e-2, False)
model.fit(x, y, 4, 4, 0, callbacks=[kresume.BackupAndRestore(folder), Die(1)], shuffle=False)
"""
WHOLE = """
prepare(model, 1e-3, True)
model.fit(x, y, 4, 3, 0, callbacks=[kresume.BackupAndRestore(folder), Die(2)], shuffle=False)
"""
SCRIPTS = {
    "head, then all layers": HEAD + WHOLE,
    "one callback for both": """
        backup = kresume.BackupAndRestore(folder)
        prepare(model, 1e-2, False)
        model.fit(x, y, 4, 4, 0, callbacks=[backup, Die(1)], shuffle=False)
        prepare(model, 1e-3, True)
        model.fit(x, y, 4, 3, 0, callbacks=[backup, Die(2)], shuffle=False)
        """,
    "one function for both": "train(model, 1e-2, False, 4, 1)\ntrain(model, 1e-3, True, 3, 2)",
    "folds in a loop": """
        for fold in range(1, 3):
            model = build()
            train(model, 1e-2, True, 3, fold)
        """,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns a function that runs a script as a new process would: nothing is known of fits before."""

    def run(code, folder="backup", kill=None):
        monkeypatch.setattr(fit_of_script, "PROCESS", uuid.uuid4().hex)
        monkeypatch.setattr(fit_of_script, "_ended", {})
        # The lines of this file that run the script differ.
        monkeypatch.setattr(fit_of_script, "LIBRARIES", (*fit_of_script.LIBRARIES, __file__))
        path = tmp_path / "script.py"
        path.write_text(BEGIN + textwrap.dedent(code) + END)
        given = {"folder": str(tmp_path / folder), "kill": kill}
        try:
            return runpy.run_path(str(path), given)
        except BaseException as error:
            if type(error).__name__ != "Killed":
                raise
            return None

    return run


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.sample("head, then all layers", "folds in a loop")
def test_each_fit_has_its_own_backup(run, tmp_path, capsys, name):
    """Killed in its second fit, a script ends with the bits of an undisturbed one.

    The first fit does not restore what the second one left. Keras's callback does.
    """
    expected = run(SCRIPTS[name])["digest"]
    assert run(SCRIPTS[name], kill=(2, 2)) is None
    capsys.readouterr()
    done = run(SCRIPTS[name])
    assert done["digest"] == expected
    second = [epoch for phase, epoch in done["trained"] if phase == 2]
    assert second[0] in {1, 2}, "the second fit began anew"
    said = capsys.readouterr().err
    assert "holds the backup of another fit of this script" in said
    assert "continuing at step" in said
    assert not (tmp_path / "backup").exists()


STOPPED_EARLY = """
class DieAtTheEnd(keras.callbacks.Callback):
    def on_train_end(self, logs=None):
        if kill == "end":
            raise Killed

stops = keras.callbacks.EarlyStopping("loss", min_delta=9, patience=1, restore_best_weights=True)
prepare(model, 1e-2, False)
model.fit(x, y, 4, 9, 0, callbacks=[stops, DieAtTheEnd(), kresume.BackupAndRestore(folder), Die(1)], shuffle=False)
stopped, left = model.stop_training, os.path.exists(folder)
"""


@pytest.mark.one_backend(trains=True)
def test_a_fit_that_was_stopped_early_and_killed_before_it_returned_has_ended(run, tmp_path, capsys):
    """The process that trains nothing kept the backup, and the second fit continued from it."""
    expected = run(STOPPED_EARLY + WHOLE)
    assert run(STOPPED_EARLY + WHOLE, "killed", kill="end") is None
    capsys.readouterr()
    done = run(STOPPED_EARLY + WHOLE, "killed")
    assert done["trained"] == [(2, epoch) for epoch in range(3)]
    assert (done["digest"], done["stopped"], done["left"]) == (expected["digest"], True, False)
    said = capsys.readouterr().err
    assert "nothing is left to train: EarlyStopping ended the training after epoch 2 of 9" in said
    assert "fit returns now and removes its backups" in said
    assert "warning" not in said
    assert not (tmp_path / "killed").exists()


LOGGED = """
log = keras.callbacks.CSVLogger(folder + ".csv", append=True)

def callbacks(phase):
    return [kresume.BackupAndRestore(folder, save_freq=freq), log, Die(phase)]

try:
    prepare(model, 1e-2, False)
    model.fit(x, y, 4, 2, 0, callbacks=callbacks(1), shuffle=False)
    prepare(model, 1e-3, True)
    model.fit(x, y, 4, 5, 0, callbacks=callbacks(2), shuffle=False, initial_epoch=2)
finally:
    log.csv_file.close()
"""


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    "kills",
    [[(2, 4)], [(2, 3), (1, 1)], [(1, 1.5), (2, 3.5)], [(1, 0.5), (2, 2.5), (1, 1.5)]],
)
@pytest.mark.sample("kills1", "kills3")
def test_the_lines_of_a_first_fit_that_is_trained_again_are_in_a_table_once(run, tmp_path, capsys, monkeypatch, kills):
    """Killed in its second fit, a script trains the first one again, which appends its lines to the table again."""
    monkeypatch.setattr(callback_logs, "_begun", {})
    within = any(epoch % 1 for _, epoch in kills)
    code = "freq, x, y = 1, np.tile(x, (2, 1)), np.tile(y, 2)\n" * within + LOGGED  # with two steps an epoch
    run(code, "whole")
    for kill in kills:
        monkeypatch.setattr(callback_logs, "_begun", {})
        assert run(code, kill=kill) is None
    monkeypatch.setattr(callback_logs, "_begun", {})
    run(code)
    found, expected = ((tmp_path / f"{name}.csv").read_bytes() for name in ("backup", "whole"))
    if within:  # without data= the metrics of an interrupted epoch cover its rest
        found, expected = ([line.split(b",")[0] for line in text.splitlines()] for text in (found, expected))
    assert found == expected
    assert "changed by another program" not in capsys.readouterr().err


KEPT = """
prepare(model, 1e-2, True)
for step in range(4):
    backup = kresume.BackupAndRestore(folder, delete_checkpoint=False)
    model.fit(x, y, 4, step + 1, 0, [backup, Die(step)], initial_epoch=step, shuffle=False)
"""


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("killed", [1, 2, 3])
@pytest.mark.sample("2")
def test_fits_in_a_loop_that_keep_their_backup_train_each_epoch_once(run, killed):
    """One fit for each epoch: each goes on from the backup that the one before it kept, also in a new process."""
    expected = run(KEPT)["digest"]
    assert run(KEPT, folder="killed", kill=(killed, killed)) is None
    done = run(KEPT, folder="killed")
    assert done["trained"] == [(step, step) for step in range(killed, 4)]
    assert done["digest"] == expected


@pytest.mark.one_backend(trains=True)
def test_a_script_that_skips_a_finished_fit_continues_the_other(run, capsys):
    """The second fit finds its backup also where the first one is not called again."""
    saved = "if not os.path.exists(folder + '.h'):\n{}    open(folder + '.h', 'w').close()\n".format(
        textwrap.indent(HEAD, "    ")
    )
    assert run(saved + WHOLE, kill=(2, 2)) is None
    assert run(saved + WHOLE)["trained"][0] in {(2, 1), (2, 2)}


@pytest.mark.one_backend(trains=True)
def test_an_edited_script_continues(run, capsys):
    """A fit whose line was changed since continues; a line says that its backup is taken for it."""
    assert run(HEAD, kill=(1, 2)) is None
    assert run("# a comment\n" + HEAD.replace("4, 4, 0", "4, 6, 0"))["trained"][0] in {(1, 1), (1, 2)}
    assert "which the code does not have now: it is taken for the backup of `model.fit(x, y, 4, 6, 0," in (
        capsys.readouterr().err
    )


@pytest.mark.one_backend(trains=True)
def test_a_fit_that_is_called_from_two_lines_says_how_to_continue(run, capsys):
    """They may be two trainings, so that neither takes the other's backup."""
    branch = """
        if os.path.isdir(folder):
            train(model, 1e-2, True, 4, 1)  # continue
        else:
            train(model, 1e-2, True, 4, 1)
        """
    assert run(branch, kill=(1, 2)) is None
    assert run(branch)["trained"][0] == (1, 0)
    said = capsys.readouterr().err
    assert (
        "call it by the same line, `train(model, 1e-2, True, 4, 1)`, not by `train(model, 1e-2, True, 4, 1)  # continue`"
        in said
    )


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.sample("2")
def test_a_backup_ahead_of_the_requested_epochs_stays(run, tmp_path, capsys, epochs):
    """Fewer epochs than a killed training had begun trained nothing, and then removed its backup."""
    code = "train(model, 1e-2, True, {}, 1)".format
    expected = run(code(6))["digest"]
    assert run(code(6), kill=(1, 3)) is None
    assert run(code(epochs))["trained"] == []
    assert f"is ahead of the requested {epochs} epochs, and stays" in capsys.readouterr().err
    both = run(code(epochs) + "\nmodel = build()\ntrain(model, 1e-2, True, 5, 2)")
    assert both["trained"] == [(2, epoch) for epoch in range(5)], "the next fit took the backup"
    done = run(code(6))
    assert done["trained"][0] in {(1, 2), (1, 3)}
    assert done["digest"] == expected


@pytest.mark.one_backend(trains=True)
def test_settings_of_the_optimizer_that_changed_are_named(run, capsys):
    """They take effect; only a changed rate had a line."""
    assert run("train(model, 1e-2, True, 4, 1)", kill=(1, 2)) is None
    edited = BEGIN.replace("keras.optimizers.Adam(rate)", "keras.optimizers.AdamW(rate, beta_1=0.8)")
    assert edited != BEGIN
    run(
        "del train\n"
        + edited[edited.index("def prepare") : edited.index("trained = []")]
        + "train(model, 1e-2, True, 4, 1)"
    )
    said = capsys.readouterr().err
    assert "optimizer: class Adam -> AdamW, " in said
    assert "beta_1 0.9 -> 0.8" in said


@pytest.mark.one_backend(trains=True)
@pytest.mark.parametrize(
    "back", [False, True], ids=["a schedule instead of a number", "a number instead of a schedule"]
)
def test_a_number_and_a_schedule_replace_each_other(run, capsys, back):
    """The rate is what `compile` says now; everything else of the optimizer is restored."""
    rates = ["1e-2", "keras.optimizers.schedules.CosineDecay(0.1, 100)"]
    first, then = rates[::-1] if back else rates
    code = "train(model, {}, True, 4, 1)\nrate = float(model.optimizer.learning_rate)".format
    assert run(code(first), kill=(1, 2)) is None
    done = run(code(then))
    assert done["trained"][0] in {(1, 1), (1, 2)}
    assert done["rate"] == pytest.approx(0.01 if back else 0.0996, rel=1e-3)
    assert int(done["model"].optimizer.iterations) == 4
    said = capsys.readouterr().err
    assert f"learning_rate {'CosineDecay -> 0.01' if back else '0.01 -> CosineDecay'}" in said


@pytest.mark.one_backend(trains=True)
def test_an_edited_fit_leaves_the_backup_of_another(run):
    """A changed first fit does not take the backup of the second one, whose line is still there."""
    assert run(HEAD + WHOLE, kill=(2, 2)) is None
    done = run(HEAD.replace("4, 4, 0", "4, 5, 0") + WHOLE)
    assert done["trained"][:5] == [(1, epoch) for epoch in range(5)]
    assert done["trained"][5] in {(2, 1), (2, 2)}


@pytest.mark.one_backend
def test_cells_of_a_notebook_are_counted_anew(tmp_path, monkeypatch):
    """A cell that is run again has the first fit again: after a restart of the kernel it is the same one."""
    lines = (("cell.py", "model.fit(x)"),)
    monkeypatch.setattr(fit_of_script, "_ended", {})
    cell = 3
    monkeypatch.setattr(fit_of_script, "_cell", lambda: cell)
    first = fit_of_script.this_fit(tmp_path, lines)
    fit_of_script.ended(tmp_path, first)
    second = fit_of_script.this_fit(tmp_path, lines)
    assert (first.number, second.number, second.order) == (1, 2, 2)
    cell = 4
    assert fit_of_script.this_fit(tmp_path, lines) == first
