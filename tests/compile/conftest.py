import pytest
import torch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Measured plans of a test stay its own."""
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


@pytest.fixture
def recorder(monkeypatch):
    """Replays are taken for fast; a test that wants another recorder or clock says so."""
    from recording_kit import TapeRecorder

    from loopwise.compile import step
    from loopwise.compile.cuda_graph import step as whole_step
    from loopwise.compile.cuda_graph.recorder import recorder_for

    made = TapeRecorder() if not torch.cuda.is_available() else recorder_for(torch.device("cuda"))
    monkeypatch.setattr(step, "recorder_for", lambda device: made)
    monkeypatch.setattr(whole_step.WholeStep, "_slow", lambda self, recorded: "")
    return made
