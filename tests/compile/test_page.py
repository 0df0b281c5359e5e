"""Section of a run's page about compiled steps."""

from page_kit import sifted

from loopwise.compile.page import sections
from loopwise.run import Run


def test_nothing_is_shown_of_a_run_without_compiled_steps(tmp_path):
    Run(str(tmp_path / "run")).close()
    assert sections(str(tmp_path / "run")) == []


def test_the_plan_its_variants_and_events(tmp_path):
    with Run(str(tmp_path / "run")) as run:
        sifted(run)
    (section,) = sections(str(tmp_path / "run"))
    plan, times, variants, summary, remarks, events = section["blocks"]
    assert plan["text"] == "Since batch 2: graph inductor, passes loss_head, max autotune on."
    assert times["data"][0]["y"] == ["eager", "inductor"]  # a refused form has no time
    assert "the fastest is inductor with 8.0 ms" in times["describe"]
    assert summary["text"].startswith("The compiled step takes 8.0 ms for forward and backward instead of ")
    assert variants["rows"][2] == ["captured", None, None, None, 210.0, 0.0, "its loss differs"]
    assert remarks["rows"] == [["found in 20 s"]]
    assert events["rows"] == [[9, "a batch of another shape"]]


def test_before_a_plan_there_are_only_events(tmp_path):
    with Run(str(tmp_path / "run")) as run:
        run.append("compile", "plans", {"batch": 0, "plan": None, "forms": [], "remarks": []})
    (section,) = sections(str(tmp_path / "run"))
    assert [block["text"] for block in section["blocks"]] == ["Since batch 0: no plan."]
