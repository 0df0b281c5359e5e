"""Optional packages: a missing one names its extra, a broken one raises its own error."""

import sys

import pytest

from loopwise.errors import MissingExtra
from loopwise.extras import required


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingExtra) as error, required("plotly", "report", "the page of a run"):
        import plotly.offline  # noqa: F401
    assert str(error.value) == (
        "seen: the package 'plotly' is not installed\n"
        "expected: 'plotly', which the page of a run needs\n"
        "likely cause: loopwise was installed without its extra 'report'\n"
        "fix: pip install 'loopwise[report]'"
    )
    assert isinstance(error.value, ImportError)


def test_a_module_may_have_another_name_than_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with (
        pytest.raises(MissingExtra, match="'scikit-learn' is not"),
        required("scikit-learn", "demo", "it", "sklearn"),
    ):
        import sklearn.datasets  # noqa: F401


@pytest.mark.parametrize("statement", ["import a_package_of_plotly", "from sys import no_such_name"])
def test_a_broken_package_raises_its_own_error(statement):
    with pytest.raises(ImportError) as error, required("plotly", "report", "the page of a run"):
        exec(statement)
    assert not isinstance(error.value, MissingExtra)


def test_an_installed_package_is_imported():
    with required("click", "report", "the command"):
        import click
    assert click.command
