"""Searches that the tests of this folder share."""

from typing import Any

import pytest
from support import runs
from support.search_runs import Run, Searched, make_quick, watched


@pytest.fixture
def few_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches are quick."""
    make_quick(monkeypatch)


@pytest.fixture(scope="session")
def searched_once(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """The search of some settings on few images, watched; one per session and settings."""
    found: dict[str, Run] = {}

    def get(**settings: Any) -> Run:
        key = repr(sorted(settings.items()))
        if key not in found:
            with pytest.MonkeyPatch.context() as patch:
                make_quick(patch)
                folder = tmp_path_factory.mktemp("shared")
                found[key] = watched(runs.search_config(**settings), folder)
        return found[key]

    return get
