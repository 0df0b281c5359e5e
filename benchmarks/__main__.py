"""``python -m benchmarks``: the newest rows of every claim against their bars."""

from .harness import show, terminal
from .record import newest

if __name__ == "__main__":
    for found in newest():
        show(found, terminal())
