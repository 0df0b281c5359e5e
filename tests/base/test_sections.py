"""Builders of page sections: everything they build is valid on the page."""

import numpy as np

from loopwise import sections
from loopwise.report.sections import KINDS, validated


def test_builders_follow_the_format_of_the_page():
    plot = sections.plot("Loss", "it falls", [{"y": np.arange(3)}], {"height": 200})
    blocks = [
        sections.text("A paragraph."),
        sections.summary("A sentence.", 10),
        sections.table("Numbers", ("a", "b"), [("x", 1.5)]),
        plot,
        sections.choice("Layers", "Layer", [plot]),
        sections.layers("All layers", ["a", "b"]),
        sections.finding("warning", "a_rule", 3, "it burns", "water", "train.py:3", plot),
    ]
    (section,) = sections.section("ours", "Ours", 10, blocks)
    assert [block["kind"] for block in validated(section).blocks] == list(KINDS)


def test_a_section_without_blocks_is_left_out():
    assert sections.section("ours", "Ours", 10, iter([])) == []
