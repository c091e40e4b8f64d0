"""Tests that no other class is taken for PyTorch's SGD, Adam or AdamW, and which count and which weights of a file count."""

import pytest

from kresume.checkpoints.read import read_checkpoint
from kresume.errors import CheckpointError
from kresume.models.saved_optimizer import check_can_keep

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.one_backend


def checkpoint(make, updates=4, settings=None, renamed=None, dropped=None):
    """Returns a training's state dicts, the optimizer's changed to those of another class."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    optimizer = make(model.parameters())
    for _ in range(updates):
        optimizer.zero_grad()
        model(torch.rand(4, 3, 2, 2)).square().mean().backward()
        optimizer.step()
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group.update(settings or {})
    for entry in saved["state"].values():
        for old, new in (renamed or {}).items():
            entry[new] = entry.pop(old)
        entry.pop(dropped, None)
    return {"model": model.state_dict(), "optimizer": saved, "epoch": 1}


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-3)


def adamw(parameters):
    return torch.optim.AdamW(parameters, 1e-3)


def sgd(parameters):
    return torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True)


TIMM_SGD = {"caution": False, "corrected_weight_decay": False}
OTHERS = {
    "AdaBelief": (
        adam,
        {"settings": {"rectify": True, "decoupled_decay": True}, "renamed": {"exp_avg_sq": "exp_avg_var"}},
        "exp_avg_var",
    ),
    "AdaBelief by its settings": (adam, {"settings": {"rectify": True}}, "rectify"),
    "a cautious AdamW": (adamw, {"settings": {"caution": True}}, "caution"),
    "half of its moments": (adam, {"dropped": "exp_avg_sq"}, "exp_avg without exp_avg_sq"),
    "LARS": (sgd, {"settings": {"trust_coeff": 1e-3, "eps": 1e-8, "always_adapt": False}}, "eps, trust_coeff"),
    "SGDP": (
        sgd,
        {"settings": {"delta": 0.1, "wd_ratio": 0.1}, "renamed": {"momentum_buffer": "momentum"}},
        "momentum,",
    ),
    "SGDW": (sgd, {"settings": TIMM_SGD}, "caution, corrected_weight_decay"),
    "SAM": (sgd, {"settings": {"rho": 0.05, "adaptive": False}}, "rho"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_class_is_not_taken_for_pytorchs(tmp_path, name):
    """It has all the settings of SGD or Adam, and trains in another way: its state cannot be kept."""
    make, changes, words = OTHERS[name]
    torch.save(checkpoint(make, **changes), tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="its optimizer's state cannot be kept") as raised:
        check_can_keep(state, "adamw")
    assert words in str(raised.value)


SCRIPTS = {
    "nothing": {},
    "a name": {"name": "head", "is_head": False},
    "a scheduler": {"initial_lr": 0.1, "swa_lr": 0.05, "max_lr": 0.2},
    "timm's scale": {"lr_scale": 1.0},
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("make", [adam, adamw, sgd])
def test_what_scripts_and_schedulers_add_changes_nothing(tmp_path, make, script):
    torch.save(checkpoint(make, settings=SCRIPTS[script]), tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth")
    assert state.records["cannot_keep"] == ""
    assert state.optimizer.class_name == {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}[make.__name__]


@pytest.mark.parametrize(("make", "step", "noted"), [(adam, 4, True), (sgd, 3, False)])
@pytest.mark.parametrize("key", ["step", "global_step", "iteration"])
def test_updates_are_those_that_the_optimizer_counted(tmp_path, make, step, noted, key):
    """A script's `step` may count batches or begin anew each epoch. SGD counts none, so that there it is all there is."""
    torch.save({**checkpoint(make), key: 3}, tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth")
    assert state.step == step
    assert any(f"the file's {key} is 3" in note for note in state.records["notes"]) == noted


@pytest.mark.parametrize(
    ("keys", "used", "ignored"),
    [
        (("net", "weights"), "net", "weights"),
        (("model", "best_model"), "model", "best_model"),
        (("model", "model_ema"), "model", "model_ema"),
        (("model", "another"), "model", None),
    ],
)
def test_a_second_set_of_weights_is_named(tmp_path, keys, used, ignored):
    """The file says nothing of which is better: the plan names what is left out, and how to take it."""
    sets = {key: {"1.weight": torch.rand(3, 12), "1.bias": torch.zeros(3)} for key in keys}
    if "another" in sets:
        sets["another"] = {"scale": torch.ones(3)}
    torch.save(sets, tmp_path / "model.pth")
    state = read_checkpoint(tmp_path / "model.pth")
    assert (state.arrays["1.weight"] == sets[used]["1.weight"].numpy()).all()
    notes = [note for note in state.records["notes"] if "which are ignored" in note]
    if ignored is None:
        assert notes == []
        return
    assert f"{used} is used" in notes[0]
    assert ignored in notes[0]
    torch.save(torch.load(tmp_path / "model.pth")[ignored], tmp_path / "other.pth")  # as the note says
    assert (read_checkpoint(tmp_path / "other.pth").arrays["1.weight"] == sets[ignored]["1.weight"].numpy()).all()
