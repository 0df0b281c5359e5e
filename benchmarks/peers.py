"""Environments ``.peers/<name>`` of peers that pin other packages; ``make peers`` makes them.

A case named ``something@composer`` runs with the Python of ``.peers/composer``.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PEERS = {
    "grpc": ["grpcio==1.85.1", "numpy", f"torch=={version('torch').partition('+')[0]}", "psutil", "rich"],
    "composer": ["mosaicml==0.32.1", "rich", "setuptools<81"],
    "smdebug": [
        *["smdebug==1.0.34", "protobuf==3.20.3", "requests", "pandas", "numpy"],
        *[f"torch=={version('torch').partition('+')[0]}", "psutil", "rich", "setuptools<81"],
    ],
    "feed": [
        *["spdl==0.8.0", "av==18.1.0", "rpcdataloader==0.2.1", "torchvision", "psutil", "rich"],
        f"torch=={version('torch').partition('+')[0]}",
    ],
    "syne-tune": [
        *["syne-tune==0.16.0", "botorch==0.18.1", "gpytorch==1.15.2"],
        *[f"torch=={version('torch').partition('+')[0]}", "psutil", "rich"],
    ],
}
"""Peer -> what pip installs; rich and psutil are the harness's."""

FOLDER = Path(__file__).parent.parent / ".peers"


def python_of(case: str) -> str:
    """Return the Python for a case: this one, or its peer's."""
    _, at, peer = case.partition("@")
    if not at:
        return sys.executable
    python = FOLDER / peer / "bin" / "python"
    if not python.exists():
        raise FileNotFoundError(f"{case} needs the peer {peer!r}, which is not installed here: make peers")
    return str(python)


def installed(peer: str) -> bool:
    """Return whether ``make peers`` has made the environment."""
    return (FOLDER / peer / "ready").exists()


if __name__ == "__main__":
    for name, packages in PEERS.items():
        if not installed(name):
            print(f"installing {name}: {' '.join(packages)}", flush=True)
            subprocess.run([sys.executable, "-m", "venv", FOLDER / name], check=True)
            subprocess.run(
                [FOLDER / name / "bin" / "python", "-m", "pip", "install", "-q", *packages], check=True
            )
            (FOLDER / name / "ready").touch()
