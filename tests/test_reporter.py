"""Tests what a user sees while a command runs: on a terminal, in a log file, in a notebook."""

import io
import re
import sys
import time
import types

import pytest

from kresume.reporter import Moment, Reporter, lines, terminal

pytestmark = pytest.mark.one_backend

MOMENT = Moment(
    epoch=2, epochs=5, step=30, steps=100, done=130, total=500, images_per_second=431.2, seconds_left=75.0, loss=0.5,
    accuracy=0.812, rate=3e-4, data_share=0.02, snapshot=100,
)  # fmt: skip
FACTS = "loss 0.500", "accuracy 81.2 %", "lr 0.0003", "431 images/s", "waiting for images 2 %", "snapshot 100"


class TerminalStream(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def at_once(monkeypatch):
    """Shows everything at once, however short it is."""
    monkeypatch.setattr(lines, "SHOWN_AFTER_SECONDS", 0.0)
    monkeypatch.setattr(lines, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(terminal, "SHOWN_AFTER_SECONDS", 0.0)


@pytest.fixture
def real_terminal(monkeypatch):
    """Removes what tells that the process runs below a notebook, or without a usable terminal."""
    for name in ("JPY_PARENT_PID", "COLAB_RELEASE_TAG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def until(condition):
    """Waits until a thread has done its part."""
    while not condition():
        time.sleep(0.001)


def test_a_log_says_what_is_waited_for_and_how_long_it_took(at_once):
    """A wait is announced when it begins to last, and its time is printed at its end."""
    stream = io.StringIO()
    with Reporter(stream).waiting("compiling the first step"):
        until(lambda: "…" in stream.getvalue())
    assert re.fullmatch(r"compiling the first step …\ncompiling the first step: \d+\.\d s\n", stream.getvalue())


def test_a_log_says_nothing_of_a_short_wait():
    """A wait below one second gets no line, unless it is announced as a long one."""
    stream = io.StringIO()
    reporter = Reporter(stream)
    with reporter.waiting("reading"), reporter.progress("scoring", 3, "images") as advance:
        advance(3)
    assert stream.getvalue() == ""
    with reporter.waiting("loading", now=True):
        assert stream.getvalue() == "loading …\n"
    assert re.fullmatch(r"loading …\nloading: 0\.\d s\n", stream.getvalue())


def test_a_log_says_how_far_something_is(at_once):
    """Progress is announced, told now and then, and summed up."""
    stream = io.StringIO()
    with Reporter(stream).progress("scoring", 4, "images") as advance:
        until(lambda: "scoring, 4 images …" in stream.getvalue())
        time.sleep(0.001)
        advance(2)
        assert "scoring: 2 of 4 images (" in stream.getvalue()
        advance(3)  # a last batch that is filled up
    assert "scoring: 4 images in 0." in stream.getvalue().splitlines()[-1]


def test_a_log_has_a_line_for_each_epoch_and_one_now_and_then(monkeypatch):
    """An epoch is one line; a long one is told of in between, with everything that is known."""
    stream = io.StringIO()
    with Reporter(stream).training(epochs=5) as board:
        board(MOMENT)
        assert stream.getvalue() == ""
        monkeypatch.setattr(lines, "EVERY_SECONDS", 0.0)
        board(MOMENT)
        board.row({}, "epoch 2/5  step 200")
    told, row = stream.getvalue().splitlines()
    assert told.startswith("epoch 2/5: step 30 of 100, ")
    assert all(fact in told for fact in (*FACTS, "1:15 left"))
    assert row == "epoch 2/5  step 200"


def test_a_terminal_shows_bars_and_keeps_the_lines_of_epochs(real_terminal):
    """Bars of the training and the epoch are redrawn in place with all facts; the epoch's line stays above them."""
    stream = TerminalStream()
    reporter = Reporter(stream)
    reporter.console.width = 140
    with reporter.training(epochs=5) as board:
        board(MOMENT)
        drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\u00a0", " ")
        assert "130/500 steps  1:15 left" in drawn
        assert "epoch 2/5" in drawn
        assert "30/100 steps" in drawn
        assert all(fact in drawn for fact in FACTS)
        with reporter.progress("scoring", 83, "images") as advance:
            advance(83)
        board.row({}, "epoch 2/5  step 200")
    left = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue().rpartition("\x1b[2K")[2])
    assert "steps" not in left, "the bars are removed at the end"
    assert "epoch 2/5  step 200" in stream.getvalue()


@pytest.mark.parametrize("variable", ["JPY_PARENT_PID", "COLAB_RELEASE_TAG", "TERM"])
def test_what_only_looks_like_a_terminal_gets_plain_lines(real_terminal, monkeypatch, variable):
    """`!kresume` in a notebook has a pseudo-terminal that cannot move back, and a dumb terminal cannot either."""
    monkeypatch.setenv(variable, "dumb")
    stream = TerminalStream()
    reporter = Reporter(stream)
    with reporter.training(epochs=5) as board, reporter.waiting("loading", now=True):
        board(MOMENT)
        board.row({}, "epoch 2/5  step 200")
    assert "\x1b[2K" not in stream.getvalue()
    assert "\x1b[1A" not in stream.getvalue()
    assert "epoch 2/5  step 200\n" in stream.getvalue()


def test_a_file_gets_plain_lines_even_if_colours_are_forced(real_terminal, monkeypatch):
    """FORCE_COLOR, which CI services set, makes no bars in a log."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    with Reporter(stream).training(epochs=5) as board:
        board(MOMENT)
    assert stream.getvalue() == ""


def test_a_notebook_shows_one_table_that_is_updated(monkeypatch):
    """A notebook gets one table: a row for each epoch, the moment above it, nothing of it at the end."""
    sent = []
    display = types.ModuleType("IPython.display")
    display.HTML = lambda text: text
    handle = types.SimpleNamespace(update=sent.append)
    display.display = lambda text, **how: (sent.append(text), handle)[1]
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr("kresume.reporter.notebook.EVERY_SECONDS", 0.0)
    reporter = Reporter(io.StringIO())
    reporter.console.is_jupyter = True
    line = {
        "epoch": 2, "step": 200, "loss": 0.25, "accuracy": 0.9, "lr": 3e-4, "images_per_second": None,
        "all": {"accuracy": 0.84}, "old": {"accuracy": None}, "new": {"accuracy": 0.5},
    }  # fmt: skip
    with reporter.training(epochs=5) as board:
        board(MOMENT)
        assert all(fact in sent[-1] for fact in ("epoch 2 of 5", *FACTS))
        board.row(line, "")
    assert (
        "<tr><td>2/5</td><td>200</td><td>0.250</td><td>90.0 %</td><td>84.0 %</td><td></td><td>50.0 %</td>" in sent[-1]
    )
    assert "<progress" not in sent[-1]
    assert len(sent) == 4
    reporter.say("a <b> " + 200 * "c")
    assert sent[-1]["text/plain"] == "a <b> " + 200 * "c"
    assert sent[-1]["text/html"].startswith('<pre style="white-space: pre-wrap;')
    assert "a &lt;b&gt; c" in sent[-1]["text/html"]


def test_quiet_shows_nothing_but_warnings():
    """`quiet=True` prints warnings alone."""
    stream = io.StringIO()
    reporter = Reporter(stream, quiet=True)
    with (
        reporter.training(epochs=1) as board,
        reporter.waiting("loading", now=True),
        reporter.progress("x", 1) as advance,
    ):
        board(MOMENT)
        board.row({}, "a line")
        advance(1)
    assert stream.getvalue() == ""
    reporter.warn("look")
    assert "warning: look" in stream.getvalue()
