"""Files that are replaced as a whole, and files that others laid into a folder."""

import os
import stat
import threading

import pytest

from loopwise.errors import InputError
from loopwise.programs.processes import write_json
from loopwise.run import Run, read
from loopwise.storage.files import STALE, open_regular, replace_file


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "file"
    replace_file(path, b"first")
    replace_file(path, b"second")
    assert path.read_bytes() == b"second"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        replace_file(tmp_path / "folder", b"data")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_the_new_file_is_made_exclusively(tmp_path, monkeypatch):
    """A link that lies at the new file's name is never followed."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / "victim").write_bytes(b"whole")
    (tmp_path / ".file.guessed.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "file", b"data")
    assert (tmp_path / "victim").read_bytes() == b"whole"
    assert (tmp_path / ".file.guessed.tmp").is_symlink()


@pytest.mark.parametrize(
    "write", [lambda run: Run(run, resume=True).close(), lambda run: write_json(f"{run}/run.json", {})]
)
def test_links_at_predictable_names_are_not_followed(tmp_path, write):
    """A folder from somebody else must not make us overwrite a file outside of it."""
    Run(tmp_path / "run").close()
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / "run" / "run.json.new").symlink_to(victim)
    write(tmp_path / "run")
    assert victim.read_text() == "whole"


def test_a_link_at_the_files_own_name_is_replaced(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / "file").symlink_to(victim)
    replace_file(tmp_path / "file", b"data")
    assert (victim.read_text(), (tmp_path / "file").read_text()) == ("whole", "data")
    assert not (tmp_path / "file").is_symlink()


def test_files_that_killed_processes_left_are_removed(tmp_path):
    for name, age in ((".file.0.tmp", STALE + 60), (".file.1.tmp", 0), (".other.0.tmp", STALE + 60)):
        (tmp_path / name).write_bytes(b"")
        when = (tmp_path / name).stat().st_mtime - age
        os.utime(tmp_path / name, (when, when))
    (tmp_path / ".file.2.tmp").symlink_to(tmp_path / ".other.0.tmp")
    replace_file(tmp_path / "file", b"data")
    assert sorted(os.listdir(tmp_path)) == [".file.1.tmp", ".file.2.tmp", ".other.0.tmp", "file"]


def test_a_private_file_is_for_the_user_alone(tmp_path):
    replace_file(tmp_path / "file", b"data", private=True)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_pipes_and_devices_do_not_block_a_reader(tmp_path):
    """Opening a pipe without a writer would wait for ever."""
    Run(tmp_path / "run").close()
    (tmp_path / "run" / "sift").mkdir()
    os.mkfifo(tmp_path / "run" / "sift" / "epochs.rank0.0.jsonl")
    os.symlink("/dev/zero", tmp_path / "run" / "sift" / "epochs.rank0.1.jsonl")
    (tmp_path / "run" / "run.json").unlink()
    os.mkfifo(tmp_path / "run" / "run.json")
    seen = []

    def look():
        seen.append(read(tmp_path / "run", "sift", "epochs"))
        for path in ("run.json", "sift", "missing"):
            with pytest.raises(OSError, match=path):
                open_regular(tmp_path / "run" / path)
        with pytest.raises(InputError, match=r"no run\.json"):
            Run.existing(tmp_path / "run")
        seen.append("the end")

    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    reader.join(60)
    assert seen == [([], 0), "the end"]
