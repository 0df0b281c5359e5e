"""Print the newest record of each claim: ``python -m benchmarks``."""

from .harness import show, terminal
from .record import newest

if __name__ == "__main__":
    for result in newest():
        show(result, terminal())
