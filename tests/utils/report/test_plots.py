"""Figures cost a run nothing: what cannot be drawn is named, what data say is drawn as it is."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest

from tests.helpers.tiny import write_clip
from utils.data.datasets import Question
from utils.report import plots
from utils.report.avqa import example_clips

ODD = ["Is it $$?", "Costs $5 or $x^$", "\\frac{", "a_b ^ % # & ~ {", "$\\alpha$", "<b>“é”</b>"]


def clip(*lines: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    return np.zeros((3, 8, 8, 3), np.uint8), np.zeros(160, np.float32), list(lines)


def losses(path: Path) -> str:
    """A figure with axes, a legend and a title."""
    rows = [{"step": i, "loss": 1 / i} for i in range(1, 9)]
    return plots.loss_curve(rows, [(8, 0.2)], ["loss"], path, "training")


def test_texts_of_data_are_no_mathematics(tmp_path, monkeypatch):
    """Dollar signs, balanced or not, and backslashes in a question or an answer."""

    def parse(*_, **__):
        raise AssertionError("read as mathematics")

    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", parse)
    plots.examples([clip(*ODD), clip("$$")], tmp_path / "x.png")
    assert {path.name for path in tmp_path.iterdir()} == {"x.png", "x.pdf"}


SETTINGS = {"text.usetex": True, "figure.facecolor": "black", "font.size": 30.0, "axes.grid": True}


def test_a_matplotlibrc_changes_no_figure(tmp_path):
    """LaTeX for every text (which may not be there), colours, sizes: ours hold while we draw, and
    the user's again afterwards."""
    plain, other = str(tmp_path / "plain.png"), str(tmp_path / "other.png")
    assert plots.draw_all({plain: losses}) == [plain]
    with matplotlib.rc_context(SETTINGS):
        assert plots.draw_all({other: losses}) == [other]
        assert {key: matplotlib.rcParams[key] for key in SETTINGS} == SETTINGS
    assert Path(plain).read_bytes() == Path(other).read_bytes()


def test_what_cannot_be_drawn_is_named_and_skipped(tmp_path, capsys):
    """The other figures are drawn, nothing half written stays, and no figure stays open."""

    def fails(path: str) -> None:
        figure, axis = plots.plt.subplots()
        axis.set_title("$$")
        plots.save(figure, path)

    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    found = plots.draw_all(dict(zip(paths, (losses, fails, losses), strict=True)))
    assert found == [paths[0], paths[2]]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{paths[1]}: not drawn (") and len(line) < 600
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "a.pdf", "c.png", "c.pdf"}
    assert not plots.plt.get_fignums()


@pytest.mark.parametrize("clips", [1, 2, 3, 4, 5, 9])
def test_examples_are_of_different_clips(tmp_path, clips):
    """Four, or all where there are fewer."""
    names = [f"{i:08d}" for i in range(clips)]
    for i, name in enumerate(names):
        write_clip(tmp_path, name, 0.1, seed=i)
    questions = [Question(name, "Audio Counting", "?", f"{name}?", "no") for name in names]
    shown = example_clips(tmp_path, questions, ["no"] * clips)
    asked = [lines[0] for _, _, lines in shown]
    assert len(set(asked)) == len(asked) == min(4, clips)
