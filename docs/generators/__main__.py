"""Regenerate the generated pages of the documentation, or report which ones are out of date.

``python -m docs.generators`` writes them, ``python -m docs.generators --check`` writes nothing and exits with
status 1 if a page differs from its sources.
"""

from __future__ import annotations

import argparse

from .pages import DOCS, outdated, write


def main() -> None:
    """Parse the command line and write or compare the pages."""
    parser = argparse.ArgumentParser(prog="python -m docs.generators", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        for path in write():
            print(f"written: {path.relative_to(DOCS.parent)}")
        return
    if names := [str(path.relative_to(DOCS.parent)) for path in outdated()]:
        raise SystemExit(
            f"out of date: {', '.join(names)}\n"
            "expected: pages that match the code and the records they are generated from\n"
            "likely cause: a docstring, an import or a benchmark record changed\n"
            "fix: run python -m docs.generators and commit what it writes"
        )


if __name__ == "__main__":
    main()
