"""Rank helpers, alone and in real gloo processes."""

import pytest

from loopwise import ranks as own


def test_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (own.rank(), own.world_size(), own.is_main()) == (0, 1, True)
    assert own.from_main(lambda: 3) == 3
    with pytest.raises(KeyError):
        own.from_main(lambda: {}["missing"])


def test_the_environment_of_torchrun_counts_before_the_group_exists(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (own.rank(), own.world_size(), own.is_main()) == (2, 4, False)


def test_one_calls_and_all_receive(ranks):
    code = """
    from loopwise.ranks import from_main, is_main, rank, world_size
    calls = []
    value = from_main(lambda: calls.append(1) or {"made": rank()})
    try:
        from_main(lambda: [][0])
    except IndexError as error:
        raised = str(error)
    print(json.dumps([rank(), world_size(), is_main(), value, len(calls), raised]))
    """
    raised = "list index out of range"
    assert ranks(code, 3) == [[r, 3, r == 0, {"made": 0}, int(r == 0), raised] for r in range(3)]


def test_every_rank_writes_its_own_file(ranks, tmp_path):
    code = f"""
    from loopwise.ranks import from_main, rank
    from loopwise.run import Run
    run = Run({str(tmp_path / "run")!r})
    run.append("sift", "log", {{"rank": rank()}})
    run.close()
    print(1)
    """
    ranks(code)
    names = sorted(p.name for p in (tmp_path / "run" / "sift").iterdir())
    assert names == ["log.rank0.0.jsonl", "log.rank1.0.jsonl"]
