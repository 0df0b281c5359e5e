"""The generators of pages: markup, the picture, private names, the newest records, and the command."""

import ast
import itertools
import json
import sys

import pytest

from docs.generators import __main__ as command
from docs.generators import adapters, benchmarks, docstrings, pages, picture


def test_an_outdated_part_would_be_seen():
    text = "a\n<!-- generated: x -->\nold\n<!-- end of x -->\nb"
    assert pages.filled(text, {"x": lambda: "new\n"}) == text.replace("old", "new")
    with pytest.raises(ValueError, match="the comments"):
        pages.filled("a", {"x": str})


def test_docstrings_become_markdown():
    text = "A format.\n\n``a.b``\n    One object\n    a line.\n``c``\n    Two.\n\nEnd of ``it``."
    assert docstrings.markdown(text) == (
        "A format.\n\n- `a.b`: One object a line.\n- `c`: Two.\n\nEnd of `it`.\n"
    )


def test_a_term_of_two_lines_and_code_become_markdown():
    text = 'Of these:\n\n``{"a": 0,\n"b": 1}``\n    Both.\n\nRun::\n\n    loopwise demo\n    loopwise doctor'
    assert docstrings.markdown(text) == (
        'Of these:\n\n- `{"a": 0, "b": 1}`: Both.\n\nRun::\n\n```text\n    loopwise demo\n    loopwise doctor\n```\n'
    )


def test_the_first_sentence_ends_at_its_full_stop():
    assert docstrings.sentence("Run ``a.b`` 2.5 times.  Then stop.\n\nMore.") == "Run `a.b` 2.5 times"


def test_imports_that_a_longer_path_implies_are_left_out():
    edges = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert picture.reduced(edges) == {"a": {"b"}, "b": {"c"}, "c": set()}


def test_lines_pass_the_layers_between_boxes():
    nodes, pieces = picture.rows({"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()})
    at = picture.centres(nodes, pieces)
    for row in nodes:
        boxes = sorted(at[node] for node in row if ">" not in node[0])
        assert all(right - left >= picture.BOX for left, right in itertools.pairwise(boxes))
    assert picture.places({"a": {"b", "d"}, "b": {"c"}, "c": set(), "d": set()})["d"] == 1


def test_a_circle_is_named(monkeypatch):
    monkeypatch.setattr(
        picture, "graph", lambda part: {"store": {"watch"}, "watch": {"store"}, "hooks": set()}
    )
    with pytest.raises(ValueError, match="in a circle, or import such: store, watch"):
        picture.panel("debug", 0, 0)


def test_the_picture_is_the_same_every_time():
    assert picture.render() == picture.render()


def test_private_names_are_listed():
    source = (
        "def f(t):\n    from torch._x import y\n    return t._z, getattr(t, '_w'), t.__class__, torch._C.a.b"
    )
    assert adapters.private_names(ast.parse(source)) == ["._w", "._z", "torch._C.a.b", "torch._x.y"]


def test_the_newest_full_record_counts(tmp_path, monkeypatch):
    machine = {"device": "cpu", "capability": "AVX2"}
    for day, quick in (("20260101", False), ("20260103", False), ("20260104", True)):
        record = {"claim": "c", "machine": machine, "quick": quick}
        (tmp_path / f"c_cpu_{day}.json").write_text(json.dumps(record))
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path)
    assert [path.stem for path, _ in benchmarks.newest().values()] == ["c_cpu_20260103"]


def test_a_missed_bar_is_said():
    row = {
        "quantity": "q",
        "unit": "ms",
        "ours": [2.0, 1.0, "never"],
        "peer": None,
        "peer_name": "",
        "ratio": None,
    }
    assert benchmarks.line(row | {"bar": "ours <= 1", "met": False}) == (
        "| q | ms | 2 (1 to never) |  |  | ours <= 1 | **missed** |"
    )


def test_the_command_names_outdated_pages(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["docs.generators", "--check"])
    monkeypatch.setattr(command, "outdated", list)
    command.main()
    monkeypatch.setattr(command, "outdated", lambda: [pages.DOCS / "rules.md"])
    with pytest.raises(SystemExit) as error:
        command.main()
    assert str(error.value) == (
        "out of date: docs/rules.md\n"
        "expected: pages that match the code and the records they are generated from\n"
        "likely cause: a docstring, an import or a benchmark record changed\n"
        "fix: run python -m docs.generators and commit what it writes"
    )
