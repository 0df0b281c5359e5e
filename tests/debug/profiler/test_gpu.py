"""Columns of devices, with stand-ins for NVML and for CUDA events."""

import math
import sys
import types

import pytest
import torch
from torch import nn

from loopwise.debug.profiler import cuda_events as events
from loopwise.debug.profiler import gpu, page, reading
from loopwise.debug.profiler.cuda_events import GPU
from loopwise.debug.profiler.phases import Phases
from loopwise.debug.profiler.sampler import Sampler
from loopwise.debug.rules.profile import series


def nvml(devices=2, driver=True, power=True):
    """Stand-in for pynvml, with devices at 10 %, 20 %, ..."""
    module = types.ModuleType("pynvml")
    module.calls = []

    class NVMLError(Exception):
        pass

    def init():
        if not driver:
            raise NVMLError("no driver")
        module.calls.append("init")

    def watts(handle):
        if not power:
            raise NVMLError("not supported")
        return 1000 * (100 + handle)

    module.NVMLError, module.nvmlInit = NVMLError, init
    module.nvmlShutdown = lambda: module.calls.append("shutdown")
    module.nvmlDeviceGetCount = lambda: devices
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetName = lambda handle: b"H200" if handle else "H200"
    module.nvmlDeviceGetUUID = lambda handle: f"GPU-uuid-{handle}"
    module.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(
        used=(1 + handle) * 2**30, total=2**37
    )
    module.nvmlDeviceGetUtilizationRates = lambda handle: types.SimpleNamespace(gpu=10 * (1 + handle))
    module.nvmlDeviceGetPowerUsage = watts
    return module


@pytest.fixture
def take(monkeypatch, run, clock):
    """Sample with such a stand-in, and return the session and the stand-in."""

    def body(module, used=()):
        monkeypatch.setitem(sys.modules, "pynvml", module)
        sampler = Sampler(run, 0.5, clock=clock, used=used)
        for _ in range(3):
            clock.tick(0.5)
            sampler.sample()
        sampler.close()
        return reading.sessions(run.path)[0]

    return body


def test_devices_have_columns(take, run):
    module = nvml()
    session = take(module, used=["uuid-1"])
    table = session.system
    assert list(table["gpu0"]) == [10.0] * 3
    assert list(table["gpu1"]) == [20.0] * 3
    assert list(table["gpu1_memory"]) == [2.0**31] * 3
    assert list(table["gpu1_power"]) == [101.0] * 3
    assert session.header["devices"] == {"gpu0": "H200", "gpu1": "H200"}
    assert session.header["totals"]["gpu0_memory"] == 2**37
    assert session.header["used"] == ["gpu1"]
    assert module.calls == ["init", "shutdown"]
    system = next(each for each in page.sections(run.path) if each["id"] == "system")
    titles = [block["title"] for block in system["blocks"]]
    assert {"Device utilization", "Device memory", "Device power"} <= set(titles)


def test_numbers_that_a_device_does_not_report_are_nan(take):
    table = take(nvml(power=False)).system
    assert all(math.isnan(value) for value in table["gpu0_power"])
    assert list(table["gpu0"]) == [10.0] * 3


def test_a_device_that_is_lost_is_left_out(take):
    module = nvml(devices=3)

    def fails(handle):
        raise module.NVMLError("GPU is lost")

    module.nvmlDeviceGetHandleByIndex = lambda index: fails(index) if index == 0 else index
    whole = module.nvmlDeviceGetUUID
    module.nvmlDeviceGetUUID = lambda handle: fails(handle) if handle == 1 else whole(handle)
    module.nvmlDeviceGetName = fails
    module.nvmlShutdown = lambda: fails(0)
    session = take(module, used=["uuid-1", "uuid-2"])
    assert session.header["devices"] == {"gpu1": "unknown", "gpu2": "unknown"}
    assert session.header["used"] == ["gpu2"]
    assert list(session.system["gpu2"]) == [30.0] * 3


@pytest.mark.parametrize("module", [None, nvml(driver=False), nvml(devices=0)])
def test_without_a_device_there_are_no_columns(take, module):
    session = take(module)
    assert not [name for name in session.header["columns"] if name.startswith("gpu")]
    assert session.header["devices"] == {}


def test_no_device_is_used_by_a_model_on_the_cpu():
    assert gpu.identities([nn.Linear(2, 2)]) == []


class Event:
    """Event that passes at a time that the test sets."""

    now = 0.0

    def __init__(self, at):
        self.at = at

    def query(self):
        return Event.now >= self.at

    def elapsed_time(self, other):
        assert self.query()
        assert other.query()
        return other.at - self.at


@pytest.fixture
def device(monkeypatch, clock):
    """Phases of a device on which each event passes 10 ms after the one before, long after it was recorded."""
    made = []

    def record(self):
        made.append(Event(10.0 * len(made)))
        return made[-1]

    monkeypatch.setattr(events.Events, "record", record)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(Event, "now", 0.0)
    return Phases(lambda: 0.0, events.Events(torch.device("cuda", 0)), clock)


def take_step(phases, clock, step):
    phases.begin()
    phases.forward_begins()
    phases.forward_ends(True)
    clock.tick(1)
    phases.optimizer_begins()
    phases.optimizer_ends()
    phases.end(step, "train")


def test_times_of_a_device_are_read_once_it_has_them(device, clock):
    take_step(device, clock, 0)
    assert device.drain() is None
    Event.now = 1e9
    assert device.drain() is None  # it is the training thread that asks
    device.close_row()
    table = series.phases([device.drain()])
    assert [float(table[name][0]) for name in GPU] == pytest.approx([0.01, 0.01, 0.01])
    assert table["other"][0] == 0
    assert table["backward"][0] == 1


def test_the_sampler_asks_a_device_nothing(device, clock, monkeypatch):
    take_step(device, clock, 0)
    Event.now = 1e9
    take_step(device, clock, 1)
    monkeypatch.setattr(Event, "query", None)
    assert len(series.phases([device.drain()])) == 2


def test_no_event_is_asked_for_while_a_graph_is_captured(device, clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    monkeypatch.setattr(Event, "query", None)
    take_step(device, clock, 0)
    assert device.drain() is None


def test_times_that_a_device_does_not_have_at_the_end_are_left_out(device, clock):
    take_step(device, clock, 0)
    device.close()
    table = series.phases([device.drain()])
    assert table["backward"][0] == 1
    assert [float(table[name][0]) for name in GPU] == [0, 0, 0]
