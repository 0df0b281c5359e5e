import pytest
import torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Keep the measured plans of each test apart."""
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


@pytest.fixture
def recorder(monkeypatch):
    """Return a recorder whose replays count as fast; a test that needs another recorder or clock replaces them."""
    from recording_kit import TapeRecorder

    from loopwise.compile import planning
    from loopwise.compile.cuda_graph.recorder import recorder_for
    from loopwise.compile.cuda_graph.recording import Attempt

    made = TapeRecorder() if not torch.cuda.is_available() else recorder_for(torch.device("cuda"))
    monkeypatch.setattr(planning, "recorder_for", lambda device: made)
    monkeypatch.setattr(Attempt, "_slower", lambda self, recording: "")
    return made
