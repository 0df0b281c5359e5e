"""Private names of Inductor: a test fails if a new release of torch moves or changes one."""

import subprocess

import pytest
from torch._inductor import codecache, cpp_builder, cpu_vec_isa
from torch._inductor.exc import InvalidCxxCompiler

from loopwise.compile.cpu_libraries import torch_internals as internals

CACHE = codecache.CppPythonBindingsCodeCache


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty folder of Inductor's cache, while no library is known."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    for cache in (codecache.CppCodeCache, CACHE):
        monkeypatch.setattr(cache, "cache", {})
    return tmp_path / "inductor"


@pytest.fixture
def headers(monkeypatch, folder):
    """Return a list that gets an entry for each header that Inductor precompiles; nothing is compiled."""
    made = []
    monkeypatch.setattr(codecache, "_precompile_header", lambda *_, **__: made.append("header"))
    monkeypatch.setattr(codecache, "pick_vec_isa", lambda: cpu_vec_isa.invalid_vec_isa)
    return made


def library_of(folder, key):
    path = folder / key[1:3] / f"{key}.main.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return str(path)


def test_a_header_is_made_only_for_what_has_to_be_compiled(headers, folder):
    original, submitted = vars(codecache.CppCodeCache)["load_async"], []
    with internals.libraries_before_headers():
        CACHE.load_async("int x;", submit_fn=submitted.append)
        assert (headers, len(submitted)) == (["header"], 1)
        (key,) = CACHE.cache
        library = library_of(folder, key)
        assert internals.library_files(key) == [library]
        CACHE.cache.clear()
        found = CACHE.load_async("int x;", submit_fn=submitted.append)
        assert CACHE.cache == {key: found}
        assert CACHE.load_async("int x;", submit_fn=submitted.append) is found
        assert (headers, len(submitted)) == (["header"], 1)
        with internals.libraries_before_headers():
            CACHE.load_async("int y;")
        assert headers == ["header"] * 2
    assert vars(codecache.CppCodeCache)["load_async"] is original
    CACHE.cache.clear()
    CACHE.load_async("int x;")
    assert headers == ["header"] * 3, "newer versions of torch look first: the context can go"


def test_inductors_folder(folder):
    assert internals.inductor_folder() == str(folder)
    assert folder.is_dir()


def test_the_libraries_of_this_process(folder):
    assert internals.compiled_libraries() == []
    CACHE.cache["kabc"] = codecache.CppCodeCache.cache["kdef"] = CACHE.cache["knone"] = None
    libraries = [library_of(folder, key) for key in ("kabc", "kdef")]
    library_of(folder, "kother")  # another process made it
    code = {
        "kvec.cpp": cpu_vec_isa.VecISA._avx_code,
        "kvec.so": "",
        "kvec.so.load_ok": "",
        "kno.cpp": "int x;",
    }
    for name, text in (code | {"kno.so": "", "kfailed.cpp": cpu_vec_isa.VecISA._avx_code}).items():
        path = folder / name[1:3] / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    tests = [str(folder / "ve" / name) for name in ("kvec.so", "kvec.so.load_ok")]
    assert internals.compiled_libraries() == [*libraries, *tests]


def test_every_test_of_instructions_has_the_mark():
    programs = [
        value
        for kind in vars(cpu_vec_isa).values()
        if isinstance(kind, type)
        for name, value in vars(kind).items()
        if name.endswith("_code") and isinstance(value, str)
    ]
    assert programs
    assert all("_chk_kernel" in program for program in programs)


def test_the_compilers_version(monkeypatch):
    first = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    assert first in internals.cpp_compiler()

    def none(*_):
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert internals.cpp_compiler() == ""
