"""Studies in PostgreSQL, and the dashboard of Optuna beside both storages."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from postgres_kit import PASSWORD, binaries, server
from tune_kit import PATIENCE, described, job, program, wait_for

from loopwise.errors import InputError, StateError
from loopwise.tune import job_of, run
from loopwise.tune.trials import recorded

needs_server = pytest.mark.skipif(
    binaries() is None, reason="PostgreSQL is not installed: apt-get install postgresql"
)
TUNER = """
import json, sys
from loopwise.tune import job_of, run
run(job_of(json.load(open(sys.argv[1])), "job"), sys.argv[2], resume=sys.argv[3] == "resume")
"""


@pytest.fixture(scope="module")
def database():
    with server() as running:
        yield running


def tuner(folder, content, resume):
    (folder / "job.json").write_text(json.dumps(content))
    (folder / "tuner.py").write_text(TUNER)
    arguments = [str(folder / "job.json"), str(folder / "run"), "resume" if resume else "new"]
    return subprocess.Popen(
        [sys.executable, str(folder / "tuner.py"), *arguments], stderr=subprocess.PIPE, text=True
    )


@needs_server
def test_a_killed_tuner_is_resumed(database, tmp_path, monkeypatch):
    monkeypatch.setenv("PAUSE", "1")
    command = program(tmp_path) + " --x {x} --steps 2"
    content = described(command, storage=database.url, limits={"trials": 4, "parallel": 2})
    process = tuner(tmp_path, content, False)
    # the last trial: one that is killed while it starts has a second attempt
    wait_for(lambda: (tmp_path / "run/tune/trials/00003/0/pid").exists())
    process.kill()
    process.communicate()
    monkeypatch.setenv("PAUSE", "0")
    process = tuner(tmp_path, content, True)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    trials = recorded(str(tmp_path / "run"))
    assert sorted((trial.number, trial.state, trial.attempts) for trial in trials) == [
        (number, "finished", 1) for number in range(4)
    ]
    assert PASSWORD not in (tmp_path / "run/tune/job.json").read_text()
    assert not (tmp_path / "run/tune/journal.log").exists()


@needs_server
def test_two_jobs_in_one_database_are_two_studies(database, tmp_path):
    for name in "ab":
        changes = {"storage": database.url, "limits": {"trials": 1}}
        run(job(program(tmp_path) + " --x {x} --steps 1", **changes), str(tmp_path / name))
        assert [trial.number for trial in recorded(str(tmp_path / name))] == [0]


@needs_server
def test_a_server_that_is_gone(database, tmp_path, monkeypatch):
    monkeypatch.setenv("PAUSE", "1")
    content = described(program(tmp_path) + " --x {x} --steps 2", storage=database.url, limits={"trials": 3})
    process = tuner(tmp_path, content, False)
    wait_for(lambda: (tmp_path / "run/tune/trials/00000/0/pid").exists())
    database.stop()
    try:
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "StateError: seen: the storage postgresql+psycopg://tuner@127.0.0.1:" in errors
        assert "go on with --resume when it answers again; trials that run go on meanwhile" in errors
        assert "s3cret" not in errors
        with pytest.raises(InputError, match="connection failed: connection to server") as raised:
            run(job_of(content, "job"), str(tmp_path / "run"), resume=True)
        assert "s3cret" not in str(raised.value)
    finally:
        database.start()
    run(job_of(content, "job"), str(tmp_path / "run"), resume=True)
    assert sorted((t.number, t.state) for t in recorded(str(tmp_path / "run"))) == [
        (number, "finished") for number in range(3)
    ]


@needs_server
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("s3cret", "0ther"), 'password authentication failed for user "tuner"'),
        (("/study", "/nothing"), 'database "nothing" does not exist'),
        (("127.0.0.1", "no-such-host.invalid"), "no-such-host.invalid"),
    ],
)
def test_urls_of_no_database(database, tmp_path, change, message):
    url = database.url.replace(*change)
    with pytest.raises(InputError) as raised:
        run(job("true {x}", storage=url), str(tmp_path / "run"))
    told = str(raised.value)
    assert told.startswith("seen: the storage postgresql+psycopg://tuner@")
    assert message in told
    assert "cret" not in told
    assert "0ther" not in told
    assert not (tmp_path / "run/run.json").exists()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "sqlite:///s3cret.db",
            "storage: storage begins with sqlite://, and only postgresql:// is supported\n",
        ),
        ("postgresql://a:s3cret@host", "storage: storage names no database; write for instance"),
        ("s3cret", "storage: storage is no URL such as postgresql://user@host:5432/database\n"),
        ("postgresql://a:s3cret@host:x/study", "storage: storage is no URL such as"),
    ],
)
def test_wrong_urls(url, message):
    with pytest.raises(InputError) as raised:
        job("true {x}", storage=url)
    assert message in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_a_study_that_was_removed(tmp_path):
    described_job = job("echo ' loss={x}'", limits={"trials": 2})
    run(described_job, str(tmp_path / "run"))
    (tmp_path / "run/tune/journal.log").unlink()
    with pytest.raises(StateError, match="a study of 0 trials, and a record of trial 1"):
        run(described_job, str(tmp_path / "run"), resume=True)


@pytest.mark.parametrize("kind", ["journal", pytest.param("database", marks=needs_server)])
def test_the_dashboard_opens_the_study(kind, tmp_path, request):
    if importlib.util.find_spec("optuna_dashboard") is None:
        pytest.skip("optuna-dashboard is not installed")
    changes, place = {}, str(tmp_path / "run/tune/journal.log")
    if kind == "database":
        url = request.getfixturevalue("database").url
        changes, place = {"storage": url}, url.replace("postgresql:", "postgresql+psycopg:")
    run(job("echo ' loss={x}'", limits={"trials": 2}, **changes), str(tmp_path / "run"))
    name = "job" if kind == "journal" else json.loads((tmp_path / "run/tune/job.json").read_text())["name"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "optuna_dashboard._cli",
        place,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def studies():
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=PATIENCE) as answer:
                return json.load(answer)
        except urllib.error.URLError:
            return None

    try:
        (study,) = [study for study in wait_for(studies)["study_summaries"] if study["study_name"] == name]
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/studies/{study['study_id']}", timeout=PATIENCE
        ) as answer:
            trials = json.load(answer)["trials"]
        assert [trial["state"] for trial in trials] == ["Complete", "Complete"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
