"""Parts of a study stand from one run to the next, as long as they are the same."""

from functools import partial

import numpy as np
import pytest

from utils.network.parts import Parts


def test_a_part_is_computed_once(tmp_path, capsys):
    """What it gives is the same when it is read; another key computes it anew; a line tells how
    long it took."""
    computed = []

    def compute():
        computed.append(1)
        return {"a": np.arange(2), "b": (1.5, float("inf")), "c": None}

    found = [Parts(tmp_path / "new", key)("gaps", compute) for key in ("x", "x", "y")]
    assert found == [{"a": [0, 1], "b": [1.5, float("inf")], "c": None}] * 3
    assert len(computed) == 2
    assert capsys.readouterr().out.splitlines() == ["gaps: 0 s", "gaps: 0 s, as it stood"] + [
        "gaps: 0 s"
    ]


def test_parts_tell_what_all_took(tmp_path):
    """Those that stood count as when they were computed."""
    first = Parts(tmp_path, "x")
    first("a", lambda: 1)
    second = Parts(tmp_path, "x")
    second("a", lambda: 2)
    second("b", lambda: 3)
    assert second.seconds.keys() == {"a", "b"} and second.seconds["a"] == first.seconds["a"]


@pytest.mark.slow
def test_parts_that_are_computed_beside_each_other(tmp_path, capsys):
    """Each gives what it gives alone, in the order of their names; those that stand are read."""
    computes = {"a": partial(sum, [1, 2]), "b": partial(max, [3, 4])}
    for _ in range(2):
        assert Parts(tmp_path, "x").together(computes) == {"a": 3, "b": 4}
    told = [line.split()[0] + line[-9:] for line in capsys.readouterr().out.splitlines()[2:]]
    assert told == ["a: it stood", "b: it stood"]
