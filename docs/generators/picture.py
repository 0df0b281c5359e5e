"""Draw ``docs/architecture.svg``: the packages of each part as boxes by layer, their imports as arrows.

Only imports that no longer path implies are drawn (a transitive reduction).  A line that crosses a layer is
routed between the boxes of that layer by invisible nodes, as in Sugiyama's method.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from html import escape

from .packages import purpose
from .rooms import graph, layers

PARTS = ("debug", "report", "compile", "sift", "tune", "feed", "base")
BOX, HEIGHT, GAP, STEP = 168, 62, 16, 112
"""Width and height of a box, pixels between boxes, and pixels from layer to layer."""
LINE = 10
"""Width that a line takes where it passes a layer."""
MARGIN, TITLE, WIDE = 24, 44, 27
"""Pixels around a panel, pixels of its title, and characters in a line of a box."""
SHORT, WIDEST = 20, 1900
"""Characters of a description that says too little, and pixels of a row of panels."""
Edges = dict[str, set[str]]
Node = tuple[str, int]
"""A room and its layer; a line from ``a`` to ``b`` that passes a layer is the node ``("a>b", layer)``."""


def reduced(edges: Edges) -> Edges:
    """Return the imports that no longer path of imports implies."""

    def below(room: str) -> set[str]:
        return edges[room].union(*(below(other) for other in edges[room]))

    return {
        room: {other for other in others if not any(other in below(third) for third in others - {other})}
        for room, others in edges.items()
    }


def places(edges: Edges) -> dict[str, int]:
    """Return the layer of each room; one that imports nothing is put right below its lowest importer."""
    order = layers(edges)
    place = {room: number for number, rooms in enumerate(order) for room in rooms}
    for room in [room for room in place if not edges[room]]:
        above = [place[other] for other, others in edges.items() if room in others and other in place]
        place[room] = min(above, default=1) - 1
    return place


def rows(edges: Edges) -> tuple[list[list[Node]], list[tuple[Node, Node]]]:
    """Return the nodes by layer, ordered so that few lines cross, and the pieces of lines between them."""
    place = places(edges)
    nodes: list[list[Node]] = [[] for _ in range(1 + max(place.values()))]
    for room in sorted(place):
        nodes[place[room]].append((room, place[room]))
    pieces: list[tuple[Node, Node]] = []
    for room in sorted(place):
        for other in sorted(edges[room]):
            path = [(f"{room}>{other}", layer) for layer in range(place[room] - 1, place[other], -1)]
            for node in path:
                nodes[node[1]].append(node)
            chain = [(room, place[room]), *path, (other, place[other])]
            pieces += itertools.pairwise(chain)
    for sweep in range(24):
        _sort(nodes, pieces, downwards=sweep % 2 == 0)
    return nodes, pieces


def _sort(nodes: list[list[Node]], pieces: list[tuple[Node, Node]], downwards: bool) -> None:
    """Order each layer by the mean position of the neighbours in the layer that was ordered before."""
    order = range(len(nodes) - 2, -1, -1) if downwards else range(1, len(nodes))
    for layer in order:
        fixed = nodes[layer + (1 if downwards else -1)]
        spot = {node: (number + 0.5) / len(fixed) for number, node in enumerate(fixed)}
        near: dict[Node, list[float]] = {}
        for upper, lower in pieces:
            if downwards and upper in spot and lower[1] == layer:
                near.setdefault(lower, []).append(spot[upper])
            if not downwards and lower in spot and upper[1] == layer:
                near.setdefault(upper, []).append(spot[lower])
        own = {node: (number + 0.5) / len(nodes[layer]) for number, node in enumerate(nodes[layer])}
        nodes[layer].sort(key=lambda n: (sum(near.get(n, [own[n]])) / len(near.get(n, [0])), n))


def centres(nodes: list[list[Node]], pieces: list[tuple[Node, Node]]) -> dict[Node, float]:
    """Return the horizontal centre of each node: near its neighbours, without overlap."""
    width = {node: LINE if ">" in node[0] else BOX for row in nodes for node in row}
    total = max(sum(width[n] + GAP for n in row) for row in nodes)
    at: dict[Node, float] = {}
    for row in nodes:
        x = (total - sum(width[n] + GAP for n in row)) / 2
        for node in row:
            at[node] = x + (width[node] + GAP) / 2
            x += width[node] + GAP
    near: dict[Node, list[Node]] = {node: [] for node in at}
    for upper, lower in pieces:
        near[upper].append(lower)
        near[lower].append(upper)
    for _ in range(40):
        for row in nodes:
            wanted = [sum(at[o] for o in near[n]) / len(near[n]) if near[n] else at[n] for n in row]
            _spread(row, wanted, width, total, at)
    return at


def _spread(
    row: list[Node], wanted: list[float], width: dict[Node, int], total: float, at: dict[Node, float]
) -> None:
    """Put the nodes of a row as near to the wanted centres as their order and widths allow."""
    left, right = [], []
    edge = 0.0
    for node, x in zip(row, wanted, strict=True):
        left.append(max(x, edge + (width[node] + GAP) / 2))
        edge = left[-1] + (width[node] + GAP) / 2
    edge = total
    for node, x in zip(reversed(row), reversed(wanted), strict=True):
        right.append(min(x, edge - (width[node] + GAP) / 2))
        edge = right[-1] - (width[node] + GAP) / 2
    middle = [(a + b) / 2 for a, b in zip(left, reversed(right), strict=True)]
    edge = 0.0
    room = [width[n] + GAP for n in row]
    for number, node in enumerate(row):
        most = total - sum(room[number + 1 :]) - room[number] / 2
        at[node] = min(max(middle[number], edge + room[number] / 2), most)
        edge = at[node] + room[number] / 2


def panel(part: str, left: float, top: float) -> tuple[list[str], float, float]:
    """Return the SVG elements of one part, its width and its height."""
    edges = {room: others for room, others in graph(part).items() if not room.startswith("__")}
    edges = {room: {other for other in others if other in edges} for room, others in edges.items()}
    if circle := sorted(edges.keys() - {room for rooms in layers(edges) for room in rooms}):
        raise ValueError(
            f"packages of {part} that import each other in a circle, or import such: {', '.join(circle)}"
        )
    edges = reduced(edges)
    nodes, pieces = rows(edges)
    at = centres(nodes, pieces)

    def x(node: Node) -> float:
        return left + MARGIN + at[node]

    def y(node: Node) -> float:
        return top + TITLE + (len(nodes) - 1 - node[1]) * STEP

    lines = [f'<text class="title" x="{left + MARGIN + 8:.0f}" y="{top + 26:.0f}">{part}</text>']
    for upper, lower in pieces:
        end, start = y(lower), y(upper) + HEIGHT
        bend = (end - start) / 2
        tip = "" if ">" in lower[0] else ' marker-end="url(#tip)"'
        lines.append(
            f'<path d="M{x(upper):.0f} {start:.0f}C{x(upper):.0f} {start + bend:.0f} {x(lower):.0f} '
            f'{end - bend:.0f} {x(lower):.0f} {end - (0 if not tip else 3):.0f}"{tip}/>'
        )
        if not tip:
            lines.append(f'<path d="M{x(lower):.0f} {end:.0f}V{end + HEIGHT:.0f}"/>')
    for row in nodes:
        lines += [text for node in row if ">" not in node[0] for text in box(part, node[0], x(node), y(node))]
    total = max(at.values()) + BOX / 2 + GAP
    return lines, total + 2 * MARGIN, TITLE + (len(nodes) - 1) * STEP + HEIGHT + MARGIN


def box(part: str, room: str, x: float, y: float) -> list[str]:
    """Return the elements of one box: its name and what it does, cut at a colon or semicolon if enough is left."""
    text = purpose(part, room).replace("`", "")
    head = re.split("[:;]", text)[0]
    words = textwrap.wrap(head if len(head) > SHORT else text, WIDE)
    words = (
        [*words[:2], textwrap.shorten(f"{words[2]} {words[3]}", WIDE, placeholder=" ...")]
        if len(words) > 3
        else words
    )
    lines = [f'<rect x="{x - BOX / 2:.0f}" y="{y:.0f}" width="{BOX}" height="{HEIGHT}" rx="4"/>']
    lines.append(f'<text class="name" x="{x:.0f}" y="{y + 15:.0f}">{escape(room)}</text>')
    lines += [
        f'<text x="{x:.0f}" y="{y + 29 + 12 * number:.0f}">{escape(text)}</text>'
        for number, text in enumerate(words)
    ]
    return lines


STYLE = """<style>
text { font: 10px "DejaVu Sans", Verdana, sans-serif; fill: #333; text-anchor: middle }
.name { font-weight: bold; font-size: 12px; fill: #111 }
.title { font-weight: bold; font-size: 18px; fill: #111; text-anchor: start }
rect { fill: #eef3fa; stroke: #5b7ba8 }
path { fill: none; stroke: #8a8f98; stroke-width: 1.2 }
.panel { fill: #fafafa; stroke: #ddd }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" style="fill:#8a8f98;stroke:none"/></marker></defs>"""


def render() -> str:
    """Return the picture as SVG, a panel for each part; small panels stand beside each other."""
    sizes = {part: panel(part, 0, 0)[1:] for part in PARTS}
    body: list[str] = []
    left, top, tall, widest = 0.0, 0.0, 0.0, 0.0
    for part in PARTS:
        width, height = sizes[part]
        if left and left + width > WIDEST:
            left, top, tall = 0.0, top + tall + GAP, 0.0
        frame = f'width="{width - 8:.0f}" height="{height:.0f}" rx="6"'
        body += [
            f'<rect class="panel" x="{left + 4:.0f}" y="{top:.0f}" {frame}/>',
            *panel(part, left, top)[0],
        ]
        left, tall = left + width, max(tall, height)
        widest = max(widest, left)
    size = f'width="{widest:.0f}" height="{top + tall:.0f}" viewBox="0 0 {widest:.0f} {top + tall:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<title>Packages of Loopwise by layer</title>'
    white = '<rect width="100%" height="100%" style="fill:white;stroke:none"/>'
    return "\n".join([head, STYLE, white, *body, "</svg>"]) + "\n"
