"""Run the ``loopwise`` command as ``python -m loopwise``."""

from loopwise.cli import main

main()
