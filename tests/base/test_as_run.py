"""One ``run=`` argument for all parts: what it may be, how parts share a folder, and when the run is closed."""

import gc
import os
import subprocess

import forks
import pytest

from loopwise.errors import InputError, StateError
from loopwise.run import Run, as_run


def state(path):
    return Run.existing(path).info()["state"]


def test_none_is_no_run():
    assert as_run(None, "sift") is None


@pytest.mark.parametrize(
    "kind", [str, lambda path: path, lambda path: os.path.relpath(path), lambda path: f"file://{path}"]
)
def test_a_path_opens_a_run_and_release_finishes_it(tmp_path, kind):
    handle = as_run(kind(tmp_path / "run"), "sift")
    assert handle.run.path == str(tmp_path / "run")
    assert state(tmp_path / "run") == "running"
    handle.release()
    handle.release()
    assert state(tmp_path / "run") == "finished"


def test_a_run_of_the_caller_stays_open(tmp_path):
    with Run(tmp_path) as run:
        handle = as_run(run, "sift")
        assert handle.run is run
        handle.release("failed")
        assert state(tmp_path) == "running"
    assert state(tmp_path) == "finished"


def test_two_parts_share_a_path_and_the_last_one_closes_the_run(tmp_path):
    first, second = as_run(tmp_path, "debug"), as_run(f"{tmp_path}/", "sift")
    assert first.run is second.run
    first.release()
    assert state(tmp_path) == "running"
    second.release()
    assert state(tmp_path) == "finished"


@pytest.mark.parametrize("states", [("failed", "finished"), ("finished", "failed")])
def test_a_run_failed_if_one_of_its_parts_did(tmp_path, states):
    handles = [as_run(tmp_path, "debug"), as_run(tmp_path, "sift")]
    for handle, ended in zip(handles, states, strict=True):
        handle.release(ended)
    assert state(tmp_path) == "failed"


def test_local_and_remote_folders_of_one_path_are_two_runs(tmp_path):
    local, remote = as_run(tmp_path, "debug"), as_run(f"memory:/{tmp_path}", "sift")
    assert local.run is not remote.run
    local.release()
    remote.release()


def test_a_second_run_gets_a_folder_of_its_own_and_says_so(tmp_path, caplog):
    as_run(tmp_path / "run", "sift").release()
    assert not caplog.records
    second = [as_run(tmp_path / "run", part) for part in ("sift", "debug")]
    assert {handle.run.path for handle in second} == {f"{tmp_path}/run-2"}
    assert [record.message for record in caplog.records] == [
        f"'{tmp_path}/run' holds a run already: this one is written into '{tmp_path}/run-2' "
        "(resume=True goes on in the old one)"
    ]
    for handle in second:
        handle.release()
    third = as_run(f"{tmp_path}/run/", "sift")
    assert third.run.path == f"{tmp_path}/run-3"
    third.release()
    resumed = as_run(tmp_path / "run", "sift", resume=True)
    assert resumed.run.path == f"{tmp_path}/run"
    resumed.release()


def test_ranks_without_a_group_need_resume_in_a_folder_with_a_run(tmp_path, monkeypatch):
    as_run(tmp_path, "sift").release()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        StateError, match="already holds a run\nexpected: a new or empty folder, or resume=True"
    ):
        as_run(tmp_path, "sift")


@pytest.mark.parametrize("late", [0, 1])
def test_ranks_go_on_beside_a_run_together_without_waiting(ranks, tmp_path, late):
    """The second and third training of a process, after one of an earlier process, each in a folder of its own."""
    as_run(tmp_path / "run", "sift").release()
    code = f"""
    import time
    from loopwise.run import as_run
    found = []
    for training in range(2):
        if dist.get_rank() == {late}:
            dist.barrier()  # the others have opened the run already
        handles = [as_run({str(tmp_path / "run")!r}, part) for part in ("sift", "debug")]
        if dist.get_rank() != {late}:
            dist.barrier()
        found.append([handle.run.path for handle in handles])
        dist.barrier()
        for handle in handles:
            handle.run.append("sift", "log", {{"rank": dist.get_rank()}})
            handle.release()
    print(json.dumps(found))
    """
    names = [[f"{tmp_path}/run-{number}"] * 2 for number in (2, 3)]
    assert ranks(code) == [names, names]
    for name in ("run-2", "run-3"):
        assert state(tmp_path / name) == "finished"
        files = sorted(path.name for path in (tmp_path / name / "sift").iterdir())
        assert [file.split(".")[1] for file in files] == ["rank0", "rank1"]


def test_a_part_on_rank_0_alone_goes_on_beside_a_run(ranks, tmp_path):
    as_run(tmp_path / "run", "sift").release()
    code = f"""
    from loopwise.run import as_run
    handle = as_run({str(tmp_path / "run")!r}, "debug") if dist.get_rank() == 0 else None
    print(json.dumps(handle and handle.run.path))
    """
    assert ranks(code) == [f"{tmp_path}/run-2", None]


def test_a_part_that_cannot_start_leaves_no_run_behind(tmp_path):
    handle = as_run(tmp_path / "new", "debug")
    handle.run.append("debug", "findings", {})
    handle.cancel()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old" / "debug").mkdir(parents=True)
    (tmp_path / "old" / "debug" / "mine.txt").write_text("of the user")
    handles = [as_run(tmp_path / "old", part) for part in ("debug", "sift")]
    handles[1].cancel()
    assert state(tmp_path / "old") == "running"
    handles[0].release()
    as_run(tmp_path / "old", "debug", resume=True).cancel()
    assert state(tmp_path / "old") in ("running", "finished")
    assert (tmp_path / "old" / "debug" / "mine.txt").exists()


@pytest.mark.parametrize("place", ["/proc/nowhere/run", "{file}/run"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"cannot hold a run: .*Error"):
        as_run(place.format(file=tmp_path / "file"), "debug")


@pytest.mark.parametrize("resume", [(True, False), (False, True), (True, True)])
def test_the_second_part_joins_with_or_without_resume(tmp_path, resume):
    if resume[0]:
        Run(tmp_path).close()
    handles = [as_run(tmp_path, part, resume=r) for part, r in zip(("debug", "sift"), resume, strict=True)]
    assert handles[0].run is handles[1].run
    for handle in handles:
        handle.release()
    assert state(tmp_path) == "finished"


def test_the_same_part_twice_has_two_folders(tmp_path):
    first, second = as_run(tmp_path / "run", "sift"), as_run(tmp_path / "run", "sift")
    assert second.run.path == f"{tmp_path}/run-2"
    joined = as_run(tmp_path / "run", "debug")
    assert joined.run is second.run
    for handle in (first, second, joined):
        handle.release()
    assert state(tmp_path / "run") == state(tmp_path / "run-2") == "finished"


def test_the_same_part_twice_shares_the_run_with_resume(tmp_path):
    first, second = as_run(tmp_path, "sift"), as_run(tmp_path, "sift", resume=True)
    assert first.run is second.run
    first.release()
    assert state(tmp_path) == "running"
    second.release()
    assert state(tmp_path) == "finished"


def test_resume_and_a_run_exclude_each_other(tmp_path):
    with Run(tmp_path) as run, pytest.raises(InputError) as error:
        as_run(run, "sift", resume=True)
    assert str(error.value) == (
        "seen: resume=True together with a Run\n"
        "expected: resume=True only if run= is a path\n"
        "likely cause: the Run is open already\n"
        "fix: pass resume=True to Run(...) instead"
    )


def test_other_types_are_refused():
    with pytest.raises(InputError, match="run= of type Linear"):
        as_run(type("Linear", (), {})(), "sift")


def test_a_garbage_collected_handle_is_released(tmp_path):
    as_run(tmp_path, "sift")
    gc.collect()
    assert state(tmp_path) == "finished"


@pytest.mark.parametrize(("end", "expected"), [("", "finished"), ("raise KeyError", "failed")])
def test_a_handle_is_released_at_the_exit_of_the_interpreter(tmp_path, end, expected):
    code = f"from loopwise.run import as_run\nhandle = as_run({str(tmp_path)!r}, 'sift')\n{end}"
    subprocess.run([forks.python(), "-c", code], capture_output=True)
    assert state(tmp_path) == expected


def test_a_forked_process_does_not_close_the_run(tmp_path):
    code = f"""
import os, sys
from loopwise.run import Run, as_run
handle = as_run({str(tmp_path)!r}, 'sift')
if os.fork() == 0:
    sys.exit()
os.wait()
print(Run.existing({str(tmp_path)!r}).info()["state"])
"""
    done = subprocess.run([forks.python(), "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout == "running\n", done.stderr
    assert state(tmp_path) == "finished"


def test_a_part_that_resumes_is_told_that_an_earlier_part_did_not(tmp_path, caplog):
    as_run(tmp_path / "run", "sift").release()
    first = as_run(tmp_path / "run", "sift")
    caplog.clear()
    second = as_run(tmp_path / "run", "debug", resume=True)
    assert second.run is first.run
    [record] = caplog.records
    assert f"resume=True of the part debug does not go on in '{tmp_path}/run'" in record.message
    assert "pass resume=True to sift as well" in record.message
    first.release()
    second.release()


def test_resuming_parts_are_told_nothing(tmp_path, caplog):
    as_run(tmp_path / "run", "sift").release()
    handles = [as_run(tmp_path / "run", "sift", resume=True), as_run(tmp_path / "run", "debug", resume=True)]
    assert [handle.run.path for handle in handles] == [f"{tmp_path}/run"] * 2
    assert not caplog.records
    for handle in handles:
        handle.release()
