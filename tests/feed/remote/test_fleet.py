"""The actors of a group: what happens to one that is being started."""

from types import SimpleNamespace

from loopwise.feed.remote import cluster
from loopwise.feed.remote.fleet import Fleet


def test_a_shutdown_of_ray_ends_a_start_without_an_error_in_its_thread(monkeypatch):
    told = []

    def place(*_):
        raise SystemExit(0)  # what Ray raises in a thread that waits when it is shut down

    monkeypatch.setattr(cluster, "members", lambda group: [])
    monkeypatch.setattr(cluster, "place", place)
    fleet = SimpleNamespace(
        group="data", _keys=None, _choose=lambda *_: None, command=lambda *words: told.append(words)
    )
    Fleet._place(fleet, None, 0.0)
    ((what, _, error, fatal),) = told
    assert (what, str(error), fatal) == ("failed", "Ray was shut down", True)
