"""Sections of providers: collected, validated, and independent of providers that fail."""

import base64
import math

import numpy as np
import pytest

from loopwise.errors import InputError
from loopwise.report import sections
from loopwise.report.page import cell, sentence, state

PLOT = {"kind": "plot", "title": "A line", "describe": "it rises", "data": [{"y": [1, 2]}], "layout": {}}
TABLE = {"kind": "table", "title": "Numbers", "columns": ["a", "b"], "rows": [["x", 1.5]]}
FINDING = {
    "kind": "finding",
    "severity": "critical",
    "rule": "a_rule",
    "step": 3,
    "what": "it burns",
    "advice": "water",
    "line": "train.py:3",
    "plot": None,
}


def section(*blocks, **more):
    return {"id": "ours", "title": "Ours", "order": 10, "blocks": list(blocks)} | more


class Entry:
    """An installed entry point."""

    def __init__(self, name, *made):
        self.name, self.value, self.made = name, f"{name}.page:sections", made

    def load(self):
        def sections(path, other=None):
            for section in self.made:
                if isinstance(section, Exception):
                    raise section
                yield section

        return sections


@pytest.fixture
def installed(monkeypatch):
    """Return a function that replaces the installed providers by its arguments."""
    return lambda *entries: monkeypatch.setattr(sections, "entry_points", lambda group: entries)


def test_sections_come_in_their_order_and_those_of_one_id_together(installed, run):
    first, second = section(PLOT, id="late", order=50), section(TABLE)
    installed(
        Entry("b", second), Entry("a", first, section(FINDING, title="Else")), Entry("c", section(id="empty"))
    )
    collected, notes = sections.collect(run)
    assert [section.id for section in collected] == ["ours", "late"]
    assert [block["kind"] for block in collected[0].blocks] == ["finding", "table"]
    assert notes == []


def test_a_provider_that_raises_is_named_and_the_others_are_shown(installed, run):
    installed(
        Entry("bad", section(TABLE, id="before"), ValueError("no\nbytes")), Entry("good", section(TABLE))
    )
    shown = state(run)
    assert [section["id"] for section in shown["sections"]] == ["before", "ours"]
    assert (
        "The sections of bad (bad.page:sections) are missing: ValueError: no bytes" in shown["head"]["html"]
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "a section that is a int"),
        ({"id": "a"}, "a section without 'title'"),
        (section(id="No Good"), "the id 'No Good'"),
        (section(order="first"), "order='first'"),
        (section(7), "of the kind None"),
        (section({"kind": "image"}), "of the kind 'image'"),
        (section({"kind": "text"}), "without 'text'"),
        (section(TABLE | {"rows": [["x"]]}), "the row ['x']"),
        (section(TABLE | {"rows": [["x", {}]]}), "a cell of dict"),
        (section(PLOT | {"data": [7]}), "a trace that is no dict"),
        (section(PLOT | {"data": [{"y": object()}]}), "with a object"),
        (section(PLOT | {"layout": None}), "layout=None"),
        (section({"kind": "choice", "title": "", "label": "", "plots": []}), "without plots"),
        (section({"kind": "choice", "title": "", "label": "", "plots": [TABLE]}), "without 'describe'"),
        (section(FINDING | {"severity": "bad"}), "the severity 'bad'"),
        (section(FINDING | {"plot": {}}), "without 'title'"),
    ],
)
def test_other_formats_are_refused(value, message):
    with pytest.raises(InputError) as error:
        sections.validated(value)
    assert message in error.value.args[0]


@pytest.mark.parametrize(
    ("array", "dtype", "values"),
    [
        (np.array([1.5, np.nan, np.inf, -np.inf]), "f4", [1.5, math.nan, math.nan, math.nan]),
        (np.array([1e300]), "f8", [1e300]),
        (np.array([0, 2**31 - 1]), "i4", [0, 2**31 - 1]),
        (np.array([2**40]), "f8", [2**40]),
        (np.array([True, False]), "i4", [1, 0]),
        (np.array([], dtype=np.int64), "i4", []),
    ],
)
def test_arrays_travel_as_bytes(array, dtype, values):
    typed = sections.plain(array, "an array")
    assert typed["dtype"] == dtype
    back = np.frombuffer(base64.b64decode(typed["bdata"]), "<" + dtype)
    np.testing.assert_array_equal(back, np.array(values, "<" + dtype))


def test_a_matrix_says_its_shape_and_texts_stay_texts():
    assert sections.plain(np.zeros((2, 3)), "an array")["shape"] == "2, 3"
    assert sections.plain(np.array(["a", "b"]), "an array") == ["a", "b"]
    assert sections.plain([np.float32(2.5), math.nan, (1, None)], "a list") == [2.5, None, [1, None]]


def test_equal_steps_travel_once():
    steps = np.arange(5)
    value = section(
        PLOT | {"data": [{"x": steps, "y": steps}, {"x": steps.copy(), "y": steps}, {"x": steps + 1}]}
    )
    traces = sections.validated(value).blocks[0]["data"]
    assert [trace["x"] == "same" for trace in traces] == [False, True, False]


def test_a_block_keeps_its_key_when_another_comes_before_it(installed, run):
    installed(Entry("a", section(FINDING, TABLE)))
    before = {block["key"]: block["hash"] for block in state(run)["sections"][0]["blocks"]}
    installed(Entry("a", section(FINDING | {"step": 1}, FINDING, TABLE | {"rows": []})))
    after = {block["key"]: block["hash"] for block in state(run)["sections"][0]["blocks"]}
    assert set(before) < set(after)
    assert [key for key in before if before[key] != after[key]] == ["ours-table-numbers"]


def test_a_plot_of_a_choice_keeps_its_key_when_another_comes_before_it(installed, run):
    def keys(*titles):
        plots = [PLOT | {"title": title, "describe": title} for title in titles]
        installed(Entry("a", section({"kind": "choice", "title": "Weights", "label": "Of", "plots": plots})))
        (block,) = state(run)["sections"][0]["blocks"]
        return {(key, figure["describe"]) for key, figure in block["plots"].items()}

    assert keys("0.weight", "2.weight") < keys("4.weight", "0.weight", "2.weight")
    assert len({key for key, _ in keys("same", "same", "1", "0")}) == 4


def test_cells_and_sentences_are_readable():
    cells = [cell(value) for value in (True, None, 1234567, 0.00012346, 3.0, "x")]
    assert cells == ["yes", "", "1,234,567", "0.0001235", "3", "x"]
    assert [sentence(text) for text in ("it burns", "Is it?", " ")] == ["It burns.", "Is it?", ""]
    names = ["layers.0 burns", "layer3 burns", "8.bias", "loss, train"]
    assert [sentence(text) for text in names] == [
        "layers.0 burns.",
        "layer3 burns.",
        "8.bias.",
        "Loss, train.",
    ]
