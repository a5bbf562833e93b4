"""Progress: plain lines where there is no terminal, a bar with the loss terms where there is one."""

import io

import pytest
from rich.console import Console

from steerable.progress import PassProgress, TrainProgress, epoch_line

STEP = {"step": 3, "total_steps": 4, "images_per_second": 1234.4, "loss": 1.25, "relative": 0.5}
EPOCH = {
    "epoch": 2,
    "step": 4,
    "images_per_second": 1234.4,
    "loss": 1.25,
    "knn_accuracy": 0.5,
    "relative_error": 0.2,
}


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_epoch_is_one_line_of_what_it_has():
    assert epoch_line(EPOCH, 12) == "epoch  2/12  loss 1.250  kNN 50.0%  relative error 0.200  1,234 images/s"
    assert epoch_line({"epoch": 1, "loss": 2.0, "images_per_second": None}, 3) == "epoch 1/3  loss 2.000"


def test_without_a_terminal_there_is_a_line_per_epoch_and_nothing_else():
    plain = console(terminal=False)
    with TrainProgress(2, label="control", console=plain) as listener:
        listener(STEP)
        listener(EPOCH)
    with PassProgress(console=plain) as listener:
        listener(1, 2, "hue")
    assert text(plain) == f"control  {epoch_line(EPOCH, 2)}\n"


def test_on_a_terminal_the_bar_shows_terms_speed_and_time_left():
    screen = console(terminal=True)
    with TrainProgress(5, console=screen) as listener:
        listener(STEP)
        assert listener.bar
        listener.bar.refresh()
        shown = text(screen)
        listener(EPOCH)
    for word in ("epoch 1/5", "75%", "1,234 images/s", "left", "loss 1.250", "relative 0.500"):
        assert word in shown
    assert "total_steps" not in shown
    assert epoch_line(EPOCH, 5) in text(screen)


def test_an_error_leaves_the_terminal_as_it_was():
    screen = console(terminal=True)

    def work():
        with TrainProgress(5, console=screen) as listener:
            listener(STEP)
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        work()
    assert text(screen).rstrip("\r\n").count("\x1b[?25h") == 1, "the cursor is back"
