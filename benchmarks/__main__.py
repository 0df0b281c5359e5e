"""``python -m benchmarks``: the newest rows of every claim against their bars."""

from rich.console import Console

from .harness import show
from .record import newest

if __name__ == "__main__":
    for found in newest():
        show(found, Console())
