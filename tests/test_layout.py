"""The layout of the source tree: who imports whom, how long files are, what they are called, where hooks are."""

import pytest
from layout_kit import (
    ADAPTER,
    CODE,
    LIBRARY,
    METAPHORS,
    PARTS,
    ROOT,
    SHIPPED,
    SOURCES,
    TESTS,
    crowded,
    foreign,
    inverted,
    long_functions,
    private_names,
    registers_hooks,
)

from docs.generators import rooms

ORDER = {
    "base": "errors warnings lazy torch_internals storage programs random_state ranks sections devices extras validate wrappers sample_losses preserve run "
    "schedule batch loss doctor cli __main__",
    "report": "bundle browser facts sections summary page source listing server command",
    "sift": "torch_internals report loss_history buffer source coordination compile_decision policies scorers scoring "
    "tokens selection step_losses frameworks options reader pipeline sharded pilot state loader page lightning transformers",
    "tune": "log pareto job process sagemaker reporting trials search engine folder invocation tuner page table cli",
    "feed": "torch_internals unpicklable protocol packing lanes ring processes remote iterator options state rebuilt loader accelerate launcher diagnosis "
    "page lightning transformers cli",
    "compile": "cpu_libraries torch_internals loss_head plan losses options spec accumulation "
    "layout graph verify search explain events cuda_graph forward planning step trainer_options lightning "
    "in_place outputs batch_size cache page transformers",
    "debug": "torch_internals model hooks statistics store signals rules alerts loggers monitors read profiler nan capture "
    "options reporting interrupts ending watch preflight page callback lightning transformers cli",
}
"""The rooms of each part, the lowest first: a room imports only rooms before it."""
NAMES = ROOT / "base" / "__init__.py"
"""The one file that names all parts; it imports each when its name is first used."""
HOOKS = {"debug/hooks", "sift/step_losses"}
"""The only places that register hooks on modules, tensors and optimizers."""


def test_no_part_imports_another():
    for path in SHIPPED:
        part = path.relative_to(ROOT).parts[0]
        if part in {*PARTS, "base"} and path != NAMES:
            assert not foreign(path, path.read_text()), path


def test_a_foreign_import_would_be_seen():
    path = ROOT / "debug" / "rules" / "new.py"
    assert foreign(path, "def f():\n    from loopwise.sift import TopLoss") == {"sift"}
    assert foreign(path, "from ...sift import TopLoss") == {"sift"}


def above(edges, order):
    """Return the imports of a room that stands above the importing one, or in no order."""
    place = {room: number for number, room in enumerate(order)}
    return [
        (room, other)
        for room, others in edges.items()
        for other in others
        if place.get(other, len(place)) >= place.get(room, -1)
    ]


@pytest.mark.parametrize("part", ORDER)
def test_rooms_import_only_rooms_below_them(part):
    order = [*ORDER[part].split(), "__init__"]
    edges = rooms.graph(part)
    assert set(edges) <= set(order), "a room that has no place in the order"
    assert not above(edges, order)


@pytest.mark.parametrize("part", LIBRARY)
def test_rooms_form_no_circle(part):
    edges = rooms.graph(part)
    assert {room for layer in rooms.layers(edges) for room in layer} == set(edges)


def test_an_import_from_above_and_a_circle_would_be_seen():
    edges = {"store": {"watch"}, "watch": {"store"}}
    assert above(edges, ["store", "watch"]) == [("store", "watch")]
    assert rooms.layers(edges) == []


def test_folders_stay_small():
    files = [p for d in [*LIBRARY, "examples", "benchmarks", "docs", "tests"] for p in (ROOT / d).rglob("*")]
    assert not crowded(p for p in files if p.suffix in CODE and "__pycache__" not in p.parts)


def test_a_crowded_folder_would_be_seen():
    assert crowded([ROOT / f"{n}.py" for n in range(21)]) == {ROOT: 21}


def test_files_and_functions_stay_short():
    for path in [*SOURCES, *TESTS]:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        assert not long_functions(text), path


def test_a_long_function_would_be_seen():
    assert long_functions("def f():\n" + "    pass\n" * 70) == ["f"]


def test_the_base_stays_small():
    assert sum(path.read_text().count("\n") for path in (ROOT / "base").rglob("*.py")) <= 2500


def test_docstrings_begin_with_a_verb_or_a_noun():
    wrong = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := inverted(path.read_text()))}
    assert not wrong


def test_an_inverted_docstring_would_be_seen():
    assert inverted('def f():\n    """What it does."""') == ["What it does."]


def test_no_file_is_named_by_a_metaphor():
    assert not [path for path in SHIPPED if path.stem in METAPHORS]


def test_a_metaphor_would_be_seen():
    assert "taps" in METAPHORS


def test_hooks_are_registered_in_one_place():
    for path in SHIPPED:
        relative = path.relative_to(ROOT)
        if str(relative) not in HOOKS and str(relative.parent) not in HOOKS:
            assert not registers_hooks(path.read_text()), path


def test_a_hook_elsewhere_would_be_seen():
    assert registers_hooks("model.register_forward_hook(f)") == ["register_forward_hook"]


def test_private_names_of_torch_are_used_in_adapters_only():
    used = {str(p): names for p in SHIPPED if p.name != ADAPTER and (names := private_names(p.read_text()))}
    assert not used


def test_a_private_name_would_be_seen():
    source = "import torch._dynamo\nfrom torch.nn.modules.loss import _Loss\nhasattr(t, '_local_tensor')"
    assert private_names(source) == {"torch._dynamo", "torch.nn.modules.loss._Loss", "_local_tensor"}
