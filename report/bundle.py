"""The part of Plotly's bundle that a page needs: a browser otherwise parses 4.8 MB, of which a page uses 1.1 MB.

Plotly's package has one file, made by esbuild.  It is a list of definitions ``var name=W((exports,module)=>{...});``,
where ``W`` runs a module when it is called for the first time; one of them registers the types of traces.  The part is
the modules that are reached from this one after the types that a page does not draw are removed from its list.  A
bundle of another form, or of a version whose part was not tried in a browser, is used whole.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from loopwise.extras import required

TYPES = frozenset({"scatter", "bar", "heatmap"})
"""Types of traces that every page can draw."""

TRIED = frozenset({"4.1.1"})
"""Versions of plotly.js of which the tests have drawn all types of traces with a part of the bundle."""

_VERSION = re.compile(r"\* plotly\.js v([\w.-]+)")
_MODULES = re.compile(
    r"\b([\w$]+)=\((\w),(\w)\)=>\(\)=>[^;]{0,40}?\3\|\|\2\(\(\3=\{exports:\{\}\}\)\.exports"
)
"""Function that defines a CommonJS module."""
_INITS = re.compile(r"\b([\w$]+)=\((\w),(\w)(?:,\w)?\)=>\(\)=>[^;]{0,40};try\{return \2&&\(\3=\2\(\2=0\)\)")
"""Function that defines the start of an ES module, whose names are outside of it."""
_REGISTER = re.compile(r"\.register\(\[((?:[\w$]+\(\),?)+)\]\)")
_START, _END = '"use strict";var Plotly=', "window.Plotly = Plotly;"
_CALLS = re.compile(r"(?<![\w$.])([\w$]+)\(")
_HELPERS = 5000
"""Characters at the start that hold the functions which define modules."""


def plotly(types: Iterable[str]) -> str:
    """Return the script of Plotly for the types of traces of a page."""
    return _script(TYPES.union(types))


def drawn_types(plots: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the types of the traces of plots."""
    return {str(trace.get("type", "scatter")) for plot in plots for trace in plot["data"]}


@functools.lru_cache(maxsize=4)
def _script(types: frozenset[str]) -> str:
    with required("plotly", "report", "the page of a run"):
        from plotly.offline.offline import get_plotlyjs
    whole = str(get_plotlyjs())
    return unwrapped(part(whole, types) if version(whole) in TRIED else whole)


def version(script: str) -> str:
    """Return the version that a bundle tells; empty: none."""
    found = _VERSION.search(script, 0, 500)
    return found[1] if found else ""


def unwrapped(script: str) -> str:
    """Remove the function around the bundle that chooses a loader of modules: it would be parsed twice."""
    start, end = script.find(_START), script.rfind(_END)
    licence = re.match(r"\s*/\*.*?\*/\n", script, re.DOTALL)
    if -1 in (start, end) or start > _HELPERS or not licence:
        return script
    return licence[0] + script[start : end + len(_END)]


def part(script: str, types: frozenset[str]) -> str:
    """Return the part of Plotly's bundle that draws some types of traces; all of it if it has another form."""
    defines, begins = _MODULES.search(script, 0, _HELPERS), _INITS.search(script, 0, _HELPERS)
    register = _REGISTER.search(script)
    if not (defines and begins and register):
        return script
    module = re.compile(rf"var ([\w$]+)={re.escape(defines[1])}\(\(?[\w$,]*\)?=>\{{")
    starts = [(found[1], found.start()) for found in module.finditer(script)]
    if not starts:
        return script
    # A piece is a module and, behind it, the ES modules up to the next one.
    ends = [start for _, start in starts[1:]] + [len(script)]
    pieces = [script[start:end] for (_, start), end in zip(starts, ends, strict=True)]
    places = {name: place for place, (name, _) in enumerate(starts)}
    init = re.compile(
        rf"={re.escape(begins[1])}\(\(\)=>"
    )  # the text before it is looked at afterwards: 10 times faster
    for place, piece in enumerate(pieces):
        for found in init.finditer(piece):
            places[re.findall(r"[\w$]+", piece[max(0, found.start() - 50) : found.start()])[-1]] = place

    def called(text: str) -> set[int]:
        return {places[name] for name in _CALLS.findall(text) if name in places}

    registered = [name for name in register[1].replace("()", "").split(",") if name]
    if not all(name in places for name in registered):
        return script
    named = {name: _types(name, pieces, places) for name in registered}
    kept = [name for name, of in named.items() if of & types]
    if types - {"scatter"} - {of for name in kept for of in named[name]}:
        return script
    fewer = register[0].replace(register[1], ",".join(f"{name}()" for name in kept))
    main = next(place for place, piece in enumerate(pieces) if register[0] in piece)
    pieces[main] = pieces[main].replace(register[0], fewer)
    head = script[: starts[0][1]]
    live, due = set(), {main, len(pieces) - 1, *called(head)}
    while due:
        place = due.pop()
        live.add(place)
        due |= called(pieces[place]) - live
    return head + "".join(pieces[place] for place in sorted(live))


def _types(name: str, pieces: list[str], places: Mapping[str, int]) -> set[str]:
    """Return the type of trace that a registered module defines; the module only returns another one."""
    piece = pieces[places[name]]
    inner = re.search(r"\.exports=([\w$]+)\(\)", piece)
    if inner and inner[1] in places:
        piece += pieces[places[inner[1]]]
    return set(re.findall(r'moduleType:"trace",name:"(\w+)"', piece))
