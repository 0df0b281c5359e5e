"""GPU benchmark of compile with small models on a CPU: its cases run and measure all quantities of its rows."""

import importlib.util
from collections import defaultdict

import pytest
import torch

from benchmarks.compile import gpu as compile_gpu
from benchmarks.models.large import TINY, large, loss_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_gpu, "QUICK", True)
    monkeypatch.setenv("LOOPWISE_CACHE", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the benchmark itself runs there")
def test_every_row_has_its_measurement():
    small = {
        "llama-1b": compile_gpu.language("llama-1b", "eager", 0),
        "images": compile_gpu.images("eager", 0),
    }
    small["gpt2-medium"] = compile_gpu.language("gpt2-medium", "eager", 0)
    results = {f"{name}.{form}": small[name] for name in small for form in compile_gpu.FORMS}
    results |= {"kernel.loss": compile_gpu.kernel(0), "graph.gpt-8k": {"graph: ms": 1.0, "ordinary: ms": 2.0}}
    runs = defaultdict(lambda: defaultdict(list))
    for name, values in results.items():
        for quantity, value in values.items():
            runs[name][quantity].append(value)
    rows = [row.record() for row in compile_gpu.rows(runs)]
    assert len(rows) == 3 + 1 + 3 * 3 * 2
    assert all(row["ours"][0] > 0 for row in rows)
    bars = [row["bar"] for row in rows if row["bar"] is not None]
    assert len(bars) == 2 + 3 + 3 + 1 + 2  # kernel, two language models, images, two largest batches


def test_our_form_is_a_training_step_in_bfloat16():
    step = compile_gpu.made("ours", large(TINY["llama-1b"]), loss_of)
    assert step.spec.precision == "mixed"


def test_cases_are_of_a_gpu():
    assert compile_gpu.cases("cpu") == {}
    names = set(compile_gpu.cases("nvidia-h200"))
    assert {
        "kernel.loss",
        "graph.gpt-8k",
        "images.ours",
        "llama-1b.torch.compile",
        "gpt2-medium.eager",
    } <= names
    assert ("llama-1b.liger" in names) == (importlib.util.find_spec("liger_kernel") is not None)
