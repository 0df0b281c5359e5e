"""The first paragraph of a page: how long the training took and how it ended, and a sentence of every part that has one."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .facts import Facts, span
from .sections import Section

ID, TITLE = "summary", "In short"


def summarized(facts: Facts, sections: Sequence[Section]) -> list[Section]:
    """Return the sections with the sentences of kind ``summary`` moved into a section of their own, the first one.

    Args:
        facts: facts of the run.
        sections: the sections in their order.
    """
    sentences = [block for of in sections for block in of.blocks if block["kind"] == "summary"]
    rest = [
        Section(of.id, of.title, of.order, [block for block in of.blocks if block["kind"] != "summary"])
        for of in sections
    ]
    rest = [of for of in rest if of.blocks]
    if not sentences:
        return rest
    texts = [
        in_words(facts),
        *(block["text"] for block in sorted(sentences, key=lambda block: block["order"])),
    ]
    paragraph = {"kind": "text", "text": " ".join(text for text in texts if text)}
    return [Section(ID, TITLE, 0.0, [paragraph]), *rest]


def in_words(facts: Facts) -> str:
    """Return a sentence about the time and the end of a run; empty if its start is unknown."""
    start = facts.info.get("start")
    if not start:
        return ""
    if facts.state == "running":
        return f"The training has been running for {span(time.time() - start)}."
    took = span(facts.seconds or 0.0)
    words = {
        "finished": f"The training finished after {took}.",
        "failed": f"The training failed after {took}.",
        "ended": f"The training was killed, or its machine was, after about {took}.",
    }
    return words.get(facts.state, "")
