"""Test the benchmark of one loop with all parts."""

from benchmarks import loop
from benchmarks.tasks import TASKS


def test_every_task_of_the_record_exists() -> None:
    assert set(loop.TABLE) <= set(TASKS)


def test_a_record_has_rows_for_the_tasks_that_were_run_alone() -> None:
    found = {"metric": [2.0, 1.9], "seconds": [100.0, 90.0], "samples": [1.0, 1.0]}
    shares = {f"bytes.all.{round(100 * share)}": found for share in loop.SHARES}
    better = {"bytes.all.70": found | {"metric": [1.9, 2.1], "seconds": [60.0, 50.0]}}
    ends = {"bytes.plain": found, "bytes.idle": {"plain": [1.0], "idle": [1.01], "same weights": [1.0]}}
    rows = loop.rows(shares | better | ends)
    assert all(row.quantity.startswith("language model") for row in rows)
    assert rows[0].ours == [60.0, 90.0]
    assert rows[1].ours == [2]
