"""Damaged and incomplete runs: an error that explains them, or a page that names the missing parts."""

import json
import os
import shutil

import pytest

from loopwise.errors import InputError
from loopwise.report import report
from loopwise.report.page import state
from loopwise.run import Run


def texts(path):
    """Return all texts of the page as one."""
    shown = state(str(path))
    return shown["head"]["html"] + "".join(
        b["html"] for section in shown["sections"] for b in section["blocks"]
    )


@pytest.fixture
def copy(run, tmp_path):
    """Return a copy of a run that a test may damage."""
    return shutil.copytree(run, tmp_path / "copy")


def change(path, **facts):
    info = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(info | facts))


def test_a_missing_run_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no run\.json"):
        report(tmp_path / "nothing")


def test_an_empty_run_says_what_is_missing(tmp_path):
    Run(str(tmp_path / "empty")).close()
    assert "There is nothing to show yet" in texts(tmp_path / "empty")
    assert os.path.exists(report(tmp_path / "empty"))


def test_a_run_of_a_newer_schema(copy):
    change(copy, schema=2)
    with pytest.raises(InputError) as error:
        report(copy)
    assert "schema 2" in str(error.value)
    assert "at most 1" in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_run_json_without_facts_is_an_error(copy, text):
    (copy / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json"):
        report(copy)


def test_torn_files_are_shown_as_far_as_they_go(copy):
    index = copy / "debug" / "index.rank0.0.jsonl"
    index.write_bytes(index.read_bytes()[:-40] + b"\n")
    epochs = copy / "sift" / "epochs.rank0.0.jsonl"
    epochs.write_bytes(epochs.read_bytes()[:-10])
    page = texts(copy)
    assert "cut by the end of a process, or damaged" in page
    assert "1 records were cut by the end of a process, or damaged" in page


def test_lost_bytes_leave_gaps(copy):
    (copy / "debug" / "tensors.rank0.0.seg").write_bytes(b"")
    shown = state(str(copy))
    assert "are missing" not in shown["head"]["html"]
    assert {"findings", "saved"} <= {section["id"] for section in shown["sections"]}


def test_a_run_without_an_end_says_when_it_wrote_last(copy):
    change(copy, state="running", end=None)
    page = texts(copy)
    assert "running" in page
    assert "last write 20" in page


def test_ranks_that_are_missing_or_behind_are_named(copy):
    index = (copy / "debug" / "index.rank0.0.jsonl").read_bytes()
    change(copy, world=3)
    (copy / "debug" / "index.rank2.0.jsonl").write_bytes(b"\n".join(index.split(b"\n")[:20]) + b"\n")
    shutil.copy(copy / "debug" / "tensors.rank0.0.seg", copy / "debug" / "tensors.rank2.0.seg")
    page = texts(copy)
    assert "Ranks 1 of 3 saved nothing" in page
    assert "Some ranks end before step 33: 2 (step" in page
