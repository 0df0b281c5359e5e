"""The file of compiled code: what travels to the next process, and what a damaged file does."""

import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess

import forks
import pytest
import torch

from loopwise.compile import cache, load_cache, save_cache
from loopwise.errors import InputError, StateError
from loopwise.warnings import LoopwiseWarning

KEY = "c" + "a2" * 25 + "b"
LIBRARIES = {f"{KEY}.main.so": b"machine code", f"{KEY}.so": b"test", f"{KEY}.so.load_ok": b""}

STEP = """
import sys, torch
from torch._dynamo.utils import counters
from loopwise.compile import Plan, TrainStep, load_cache, save_cache
torch.set_num_threads(1)
torch.manual_seed(0)
path, mode = sys.argv[1:]
if mode == "load": assert load_cache(path)
if mode == "plain": assert torch.compiler.save_cache_artifacts() is None
net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
plan = Plan(graph="inductor", passes=["loss_head"], optimizer="fused")
optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
step = TrainStep(net, torch.nn.CrossEntropyLoss(), optimizer, plan=plan)
losses = [step((torch.ones(4, 6), torch.arange(4) % 3)).item() for _ in range(3)]
if mode == "save": save_cache(path)
print(step.plan.graph, counters["inductor"]["fxgraph_cache_miss"], losses)
"""
COMPILER = """#!/bin/sh
case "$*" in *--version|*-dumpversion|-v) ;; *) echo "$*" >> "$LOG" ;; esac
exec "$REAL" "$@"
"""


@pytest.fixture
def inductor(tmp_path, monkeypatch):
    """Return an empty folder of Inductor's cache."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return tmp_path / "inductor"


@pytest.fixture
def path(tmp_path, inductor, monkeypatch):
    """Return a file that save_cache wrote, with three libraries."""
    (tmp_path / "made").mkdir()
    for name, code in LIBRARIES.items():
        (tmp_path / "made" / name).write_bytes(code)
    files = [str(tmp_path / "made" / name) for name in LIBRARIES]
    monkeypatch.setattr(cache, "compiled_libraries", lambda: files)
    monkeypatch.setattr(cache, "cpp_compiler", lambda: "g++ 12")
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"artifacts", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda data: data == b"artifacts" or None)
    assert save_cache(tmp_path / "step.cache") == (tmp_path / "step.cache").stat().st_size
    return tmp_path / "step.cache"


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewritten(path, **changes):
    """Write the file anew with another head and the right checksum."""
    body = path.read_bytes()[len(cache._MAGIC) + 32 :]
    length = int.from_bytes(body[:4], "little")
    text = json.dumps(json.loads(body[4 : 4 + length]) | changes).encode()
    with_checksum(path, len(text).to_bytes(4, "little") + text + body[4 + length :])


def with_checksum(path, body):
    path.write_bytes(cache._MAGIC + hashlib.sha256(body).digest() + body)


def test_a_second_process_compiles_nothing(tmp_path):
    """Neither with the file and an empty folder of Inductor's cache, nor without the file in the same folder."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "g++").write_text(COMPILER)
    (tmp_path / "bin" / "g++").chmod(0o755)
    outputs, compiled = [], []
    for number, (mode, folder) in enumerate([("save", "first"), ("plain", "first"), ("load", "second")]):
        log = tmp_path / f"log{number}"
        log.touch()
        environment = {
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / folder),
            "CXX": "g++",
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "REAL": shutil.which("g++"),
            "LOG": str(log),
        }
        if mode != "save":  # compiled headers are in the folder for temporary files
            (tmp_path / f"temporary{number}").mkdir()
            environment["TMPDIR"] = str(tmp_path / f"temporary{number}")
        done = subprocess.run(
            [forks.python(), "-c", STEP, str(tmp_path / "step.cache"), mode],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        outputs.append(done.stdout.split(" ", 2) if done.stdout else done.stderr)
        compiled.append(len(log.read_text().splitlines()))
    assert outputs[0][:2] == ["inductor", "2"], outputs
    assert outputs[1:] == [["inductor", "0", outputs[0][2]]] * 2
    assert compiled[0] >= 2
    assert compiled[1:] == [0, 0]


def test_libraries_are_laid_where_inductor_looks_for_them(path, inductor):
    assert load_cache(path) is True
    assert files_in(inductor) == LIBRARIES
    assert {file.parent.name for file in inductor.rglob("*.so*")} == {KEY[1:3]}


def test_a_library_that_is_there_is_left_alone(path, inductor):
    (inductor / KEY[1:3]).mkdir(parents=True)
    (inductor / KEY[1:3] / f"{KEY}.so").write_bytes(b"in use")
    assert load_cache(path) is True
    assert files_in(inductor) == LIBRARIES | {f"{KEY}.so": b"in use"}


@pytest.mark.parametrize(
    "name",
    [
        "../../escaped.so",
        "/tmp/escaped.so",
        f"{KEY}/../escaped.so",
        f"{KEY}.py",
        f"{KEY}.so\n",
        "",
        "..",
        ".so",
    ],
)
def test_no_name_leads_out_of_the_folder(path, inductor, name):
    rewritten(path, libraries=[(name, 16)])
    with pytest.raises(InputError, match="without a compile cache in it"):
        load_cache(path)
    assert not inductor.exists()


def test_a_damaged_file_is_refused_before_anything_is_read(path, inductor, monkeypatch):
    whole = path.read_bytes()
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("read"))
    for place in range(0, len(whole), 7):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match="without a compile cache in it"):
                load_cache(path)
    path.write_bytes(whole + b"more")
    with pytest.raises(InputError, match="without a compile cache in it"):
        load_cache(path)
    assert not inductor.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"artifacts": 2**62},
        {"artifacts": -1},
        {"artifacts": "9"},
        {"artifacts": None},
        {"artifacts": 8.0},
        {"artifacts": float("inf")},
        {"libraries": 3},
        {"libraries": [[f"{KEY}.so"]]},
        {"libraries": [[f"{KEY}.so", 2**62]]},
        {"made_for": None},
        {"made_for": {}},
        {"artifacts": 8, "libraries": [(f"{KEY}.so", 17)]},
    ],
    ids=str,
)
def test_no_length_is_believed(path, changes, inductor):
    rewritten(path, **changes)
    with pytest.raises(InputError, match="without a compile cache in it"):
        load_cache(path)


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xff\xff\xff", b"\x02\0\0\0[]", b"\x01\0\0\0{", b"\x90\xd0\x03\0" + b"[" * 250_000]
)
def test_a_head_of_another_kind_is_refused(path, body):
    with_checksum(path, body)
    with pytest.raises(InputError, match="without a compile cache in it"):
        load_cache(path)


def test_the_error_of_a_cut_file(path):
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError) as error:
        load_cache(path)
    assert str(error.value) == (
        f"seen: {str(path)!r} without a compile cache in it\n"
        "expected: a file that save_cache wrote\n"
        "likely cause: the file was cut or changed, for instance by a copy that broke off\n"
        "fix: correct the path, or leave load_cache out: everything is then compiled anew"
    )


def test_a_path_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "other").write_bytes(b"something else")
    for wrong in (tmp_path / "absent", tmp_path, tmp_path / "other", "a\0b", None, 3.5):
        with pytest.raises(InputError, match="without a compile cache in it"):
            load_cache(wrong)


def test_a_file_that_cannot_be_written_is_an_input_error(path, tmp_path):
    for wrong in (tmp_path / "absent" / "step.cache", tmp_path, path / "inside", "a\0b", None, 3.5):
        with pytest.raises(InputError, match="which cannot be written"):
            save_cache(wrong)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_folder_of_inductor_that_cannot_be_written(path, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match="for Inductor's compiled code"):
        load_cache(path)


def test_code_for_other_versions_is_compiled_anew(path, inductor, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99")
    monkeypatch.setattr(cache, "cpp_compiler", lambda: "clang")
    text = (
        "step.cache was compiled for torch .*, this process has 2.99; another C\\+\\+ compiler: everything is"
    )
    with pytest.warns(LoopwiseWarning, match=text):
        assert load_cache(path) is False
    assert not inductor.exists()


def test_code_for_another_processor_is_compiled_anew(path, inductor, monkeypatch):
    ours = cache._instructions()
    monkeypatch.setattr(cache, "_instructions", lambda: [*ours, "avx1024"])
    assert load_cache(path) is True  # this processor can do more
    save_cache(path)
    monkeypatch.setattr(cache, "_instructions", lambda: ours)
    with pytest.warns(
        LoopwiseWarning, match="compiled for a processor with avx1024, which this one lacks: every"
    ):
        assert load_cache(path) is False
    monkeypatch.setattr(cache, "_instructions", lambda: [*ours, "avx1024"])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1024")
    with pytest.warns(
        LoopwiseWarning, match="compiled for vectors [A-Z0-9]*, this process has AVX1024: every"
    ):
        assert load_cache(path) is False  # the graphs of a cache are written for one length of vectors


def test_code_for_a_gpu_alone_does_not_depend_on_the_processor(path, monkeypatch):
    monkeypatch.setattr(cache, "compiled_libraries", lambda: [])
    save_cache(path)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX1024")
    assert load_cache(path) is True


@pytest.mark.parametrize("error", [struct.error, OverflowError, RecursionError, TypeError, None])
def test_a_library_that_torch_cannot_decode_is_refused(path, monkeypatch, error):
    def load(data):
        if error is not None:
            raise error("of PyTorch's reader")

    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", load)
    with pytest.raises(InputError, match="without a compile cache in it"):
        load_cache(path)


def test_the_file_is_made_for_this_user(path):
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_saving_before_anything_was_compiled(path, monkeypatch):
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    with pytest.raises(StateError, match="seen: nothing compiled in this process"):
        save_cache(path)
