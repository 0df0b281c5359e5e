"""The folder of a job, which may be damaged: clear errors, and what is left out is said."""

import pytest

from loopwise.errors import InputError
from loopwise.storage.json_lines import encode
from loopwise.tune.folder import JobFolder
from loopwise.tune.page import sections
from loopwise.tune.search.warm_start import inherited, stored_job
from loopwise.tune.trials import recorded
from loopwise.warnings import LoopwiseWarning

TRIAL = {
    "number": 0,
    "values": {"lr": 0.1},
    "state": "finished",
    "reason": "",
    "objective": 0.5,
    "reports": [1.0, 0.5],
}
TRIAL |= {"metrics": {"loss": 0.5}, "attempts": 1, "seconds": 3.0, "job": "", "goals": {"loss": "minimize"}}
DAMAGED = [
    {"number": "x"}, {"number": 10**30}, {"metrics": 7}, {"metrics": {"loss": "x"}}, {"reports": 5}, {"objective": []},
    {"reports": ["x"]}, {"metrics": {"loss": 10**400}}, {"job": []}, {"state": None}, {"reports": [None]},
]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "\0", '{"job": {}}', '{"job": 1, "folder": "", "name": ""}', "[" * 100_000]
)
def test_a_damaged_job_is_refused(tmp_path, text):
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "job.json").write_text(text)
    with pytest.raises(InputError, match=r"job\.json"):
        stored_job(str(tmp_path))
    for _ in range(2):  # its lock is released
        with pytest.raises(InputError, match=r"job\.json"):
            JobFolder(tmp_path, resume=True)


def test_damaged_records_of_trials_are_left_out_and_counted(tmp_path):
    (tmp_path / "tune").mkdir()
    records = [TRIAL, *(TRIAL | change for change in DAMAGED), TRIAL | {"number": 1}]
    data = b"".join(map(encode, records)) + b"[]\n{\n"
    for name in ("trials", "parents"):
        (tmp_path / "tune" / f"{name}.rank0.0.jsonl").write_bytes(data)
    lost = len(DAMAGED) + 2
    with pytest.warns(LoopwiseWarning, match=f"{lost} records of ended trials"):
        assert [trial.number for trial in recorded(str(tmp_path))] == [0, 1]
    assert [trial.number for trial in inherited(str(tmp_path))] == [0, 1]
    (section,) = sections(str(tmp_path))
    assert section["blocks"][0]["text"].startswith("2 trials: 2 finished")
    assert section["blocks"][-1]["text"].startswith(f"{2 * lost} records were cut")


@pytest.mark.parametrize(
    "change",
    [{"goals": {"other": "minimize"}}, {"goals": {}}, {"values": []}, {"metrics": {}}, {"seconds": None}],
)
def test_a_trial_that_the_page_cannot_show_is_left_out(tmp_path, change):
    (tmp_path / "tune").mkdir()
    (tmp_path / "tune" / "trials.rank0.0.jsonl").write_bytes(
        encode(TRIAL) + encode(TRIAL | change | {"number": 1})
    )
    (section,) = sections(str(tmp_path))
    assert section["blocks"][0]["text"].startswith("1 trials: 1 finished")
    assert section["blocks"][-1]["text"].startswith("1 records were cut")
