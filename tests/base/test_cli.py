"""The ``loopwise`` command as a user types it."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from loopwise import __version__, cli


def loopwise(*args):
    return subprocess.run([sys.executable, "-m", "loopwise", *args], capture_output=True, text=True)


def test_help_lists_every_command_and_imports_none():
    code = "import sys\nfrom loopwise.cli import main\ntry:\n    main(['--help'])\nfinally:\n    assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, (_, text) in cli.COMMANDS.items():
        assert name in done.stdout
        assert text.split()[0] in done.stdout


def test_version_and_unknown_command():
    runner = CliRunner()
    assert runner.invoke(cli.main, ["--version"]).output.strip().endswith(__version__)
    unknown = runner.invoke(cli.main, ["demos"])
    assert unknown.exit_code == 2
    assert "No such command 'demos'" in unknown.output


def test_doctor_says_what_is_here():
    done = loopwise("doctor")
    assert done.returncode == 0, done.stderr
    for word in ("python", "loopwise", "torch", "triton", "cores", __version__):
        assert word in done.stdout


def test_demo_without_its_packages_names_the_extra():
    code = "import sys; sys.modules['sklearn'] = None; sys.modules['sklearn.datasets'] = None\nfrom loopwise.cli import main\nmain(['demo'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "pip install 'loopwise[demo]'" in done.stderr


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_during_the_imports_of_a_command_says_that_nothing_was_begun(tmp_path, monkeypatch):
    (tmp_path / "slow_part.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "tune", ("slow_part:command", ""))
    done = CliRunner().invoke(cli.main, ["tune", "run", "job.yaml"])
    assert done.exit_code == 130
    assert done.output == (
        "interrupted while loopwise tune was loading; nothing was begun or changed: call the same command again\n"
    )
