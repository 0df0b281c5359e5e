import pytest
import torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Measured plans of a test stay its own."""
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
