"""Benchmarks, one file for each claim.  They run from a checkout, whether Loopwise is installed or not."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("loopwise") is None:
    _root = Path(__file__).parent.parent
    _spec = importlib.util.spec_from_file_location(
        "loopwise",
        _root / "base" / "__init__.py",
        submodule_search_locations=[str(_root / "base"), str(_root)],
    )
    sys.modules["loopwise"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["loopwise"])
