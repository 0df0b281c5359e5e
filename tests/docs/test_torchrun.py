"""The scripts in the documents that torchrun starts, on two ranks."""

import os
import subprocess

import forks
import pytest
from docs_kit import PAGES, ROOT, blocks

from loopwise.debug import open_run

SCRIPT = "# train.py, started by torchrun\n"
SCRIPTS = [
    (path, code) for path in PAGES for code in blocks(path.read_text(), "python") if code.startswith(SCRIPT)
]


@pytest.mark.parametrize(("path", "code"), SCRIPTS, ids=[str(path.relative_to(ROOT)) for path, _ in SCRIPTS])
def test_scripts_run_on_two_ranks(path, code, tmp_path):
    (tmp_path / "train.py").write_text(code)
    torchrun = [forks.python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "LOOPWISE_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "PYTHON_EXEC": forks.python(),
    }
    done = subprocess.run(
        [*torchrun, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "samples trained on" in done.stdout
    saved = open_run(tmp_path / "runs" / "ranks")
    assert saved.ended
    assert saved.series("loss")[0].tolist() == [0, 5, 10]


def test_there_are_scripts():
    assert SCRIPTS
