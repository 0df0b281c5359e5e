"""PyTorch's own tests of DataLoader, run with DataLoader and with RemoteDataLoader: those that only the former passes.

The tests are torchdata's port of them for a loader of another class, which this repository does not contain.  Put the file
``test/stateful_dataloader/test_dataloader.py`` of https://github.com/meta-pytorch/data at commit e640e6fc into
``.peers/torchdata``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

from .. import harness
from ..peers import FOLDER
from ..record import Row

CLAIM = "feed_torch_tests"
QUICK = False
TESTS = FOLDER / "torchdata" / "test_dataloader.py"
IMPORT = re.compile(r"from torchdata.stateful_dataloader import StatefulDataLoader as DataLoader")
LOADERS = {
    "ours": "from loopwise.feed import RemoteDataLoader as DataLoader",
    "DataLoader": "from torch.utils.data import DataLoader",
}
"""Case -> the import that takes the place of the port's own."""
PATIENCE = ("JOIN_TIMEOUT = 60.0", "JOIN_TIMEOUT = 400.0")
"""The time that a test gives its processes, which is for a faster machine than two cores that are shared."""
INTENDED: dict[str, str] = {}
"""Test that only DataLoader passes -> why it is meant to be so."""


def outcomes(loader: str, pattern: str) -> dict[str, float]:
    """Run the tests with one loader.

    Args:
        loader: statement that imports the loader under the name ``DataLoader``.
        pattern: expression by which pytest chooses tests; empty: all.

    Returns:
        1 for each test that passed and 0 for each that failed, by its class and name.  Skipped tests are left out.

    Raises:
        FileNotFoundError: the tests are not there.
    """
    text, changed = IMPORT.subn(loader, TESTS.read_text())
    if not changed or PATIENCE[0] not in text:
        raise ValueError(f"{TESTS} is not torchdata's port of the tests of DataLoader")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test_dataloader.py").write_text(text.replace(*PATIENCE))
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "900"]
        command += [f"--junitxml={report}", "-k", pattern, "test_dataloader.py"]
        subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL)
        found = ET.parse(report).getroot().iter("testcase")
        return {
            f"{one.get('classname', '').rpartition('.')[2]}.{one.get('name')}": float(
                one.find("failure") is None and one.find("error") is None
            )
            for one in found
            if one.find("skipped") is None
        }


def cases(device: str) -> dict[str, Callable[[int], dict[str, float]]]:
    """Return the cases: name -> function that runs the tests."""
    pattern = "TestTensorDataset or TestNamedTuple" if QUICK else ""
    return {name: lambda seed, loader=loader: outcomes(loader, pattern) for name, loader in LOADERS.items()}  # type: ignore[misc]


def rows(runs: harness.Runs) -> list[Row]:
    """Return the rows of the record."""
    ours, theirs = runs["ours"], runs["DataLoader"]
    only = [name for name, passed in theirs.items() if min(passed) > min(ours.get(name, [0.0]))]
    table = [
        Row(
            "tests passed",
            [sum(min(passed) for passed in ours.values())],
            [sum(min(passed) for passed in theirs.values())],
            "DataLoader",
            "",
            None,
        ),
        Row(
            "tests that only DataLoader passes, but for intended differences",
            [float(sum(name not in INTENDED for name in only))],
            None,
            "",
            "",
            "ours <= 0",
        ),
    ]
    table += [
        Row(
            f"only DataLoader passes {name}: {INTENDED.get(name, 'no reason')}",
            [0.0],
            [1.0],
            "DataLoader",
            "",
            None,
        )
        for name in only
    ]
    return table


if __name__ == "__main__":
    harness.main(sys.modules[__name__])
