"""What the tests of data share."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Records of folders lie here, not at home."""
    monkeypatch.setenv("DASVIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
