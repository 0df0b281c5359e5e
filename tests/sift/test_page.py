"""Section of sift on the page of a run."""

from page_kit import sifted

from loopwise.run import Run
from loopwise.sift.page import sections


def test_nothing_is_shown_of_a_run_without_sifting(tmp_path):
    Run(str(tmp_path / "run")).close()
    assert sections(str(tmp_path / "run")) == []


def test_epochs_with_ranks_and_resumed_parts_together(tmp_path):
    with Run(str(tmp_path / "run")) as run:
        sifted(run)
        run.append("sift", "epochs", {"epoch": 2, "seen": 100, "kept": 0, "training_seconds": 0.5})
    (section,) = sections(str(tmp_path / "run"))
    text, summary, kept, time, table = section["blocks"]
    assert text["text"] == (
        "120 of 400 samples were chosen (30.0%). Scoring and selecting took 9.0 s beside 5.0 s of training steps."
    )
    assert summary["text"].startswith(
        "Sifting left out 280 of 400 samples (70%). Scoring and selecting took 9.0 s"
    )
    assert kept["data"][0]["y"] == [0.4, 0.4, 0.2]
    assert {trace["name"]: trace["y"] for trace in time["data"]}["training"] == [1.5, 1.5, 2.0]
    assert table["columns"][:3] == ["epoch", "seen", "scored"]
    assert table["rows"][2][:3] == [2, 200, 90]
