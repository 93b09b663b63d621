from pathlib import Path

import pytest

from tune.own_callbacks import own_callbacks

FILE = """
from ray.tune import Callback


class Mine(Callback):
    def __init__(self, phase):
        self.phase = phase


def two(phase):
    return [Mine(phase), Callback()]


def lone(phase):
    return Mine(phase)


def names(phase):
    return ["wandb"]


def nothing():
    return []
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_each_phase_has_new_ones(file: Path) -> None:
    assert own_callbacks(None, "search") == []
    made = [own_callbacks(f"{file}:two", phase) for phase in ("search", "retrain")]
    assert [vars(own) for own, _ in made] == [{"phase": "search"}, {"phase": "retrain"}]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("lone", "returned <.*Mine object at .*; the function takes"),
        ("names", r"returned \['wandb'\]; the function takes \(phase\) and returns a list"),
        ("nothing", "TypeError: too many positional"),
        ("other", "has no function other"),
    ],
)
def test_what_are_no_callbacks(file: Path, function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        own_callbacks(f"{file}:{function}", "search")
    assert str(caught.value).startswith("--callback ") and "\n" not in str(caught.value)
