"""Inductor's compiled CPU code: where its libraries are, and how they are found without the C++ compiler.

Inductor writes a C++ file for each kernel and compiles it into a shared library.  Both are named by a key, the digest
of the C++ code and of the compiler's command line, in the folder of Inductor's cache and there in the folder that the
key's second and third letters name.  Neither a path of the cache nor the processor goes into the key.  Tests of vector
instructions are compiled into the same folders; in newer versions of torch, an empty file beside such a library says
that it could be loaded.

These are private functions of torch; importing this file costs nothing.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def libraries_before_headers() -> Iterator[None]:
    """Let Inductor look for a compiled library before it precompiles the header that compiling it would need.

    Inductor works in the other order: every process runs the C++ compiler on the header, even if all libraries exist.
    """
    from torch._inductor import codecache

    private: Any = codecache
    cache, header = private.CppCodeCache, getattr(private, "_precompile_header", None)
    load = vars(cache).get("load_async")
    other_torch = header is None or load is None
    if other_torch or hasattr(load, "looks_first"):  # inside of this context already
        yield
        return

    def load_async(cls: Any, /, *arguments: Any, submit_fn: Any = None, **options: Any) -> Any:
        known, make = set(cls.cache), load.__func__
        private._precompile_header = lambda *_, **__: None
        try:
            library = make(cls, *arguments, **options)  # finds the key; compiles only when it is called
        finally:
            private._precompile_header = header
        new = set(cls.cache) - known
        if all(library_files(key) for key in new):
            return library
        for key in new:
            del cls.cache[key]
        return make(cls, *arguments, submit_fn=submit_fn, **options)

    cache.load_async = classmethod(load_async)
    vars(cache)["load_async"].looks_first = True
    try:
        yield
    finally:
        cache.load_async = load


def inductor_folder() -> str:
    """Return Inductor's folder of compiled code, which is made if necessary."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return cache_dir()


def library_files(key: str) -> list[str]:
    """Return the compiled library of a key of Inductor's CPU code, an empty list if it was not compiled."""
    stem = os.path.join(inductor_folder(), key[1:3], key)
    return [name for name in (f"{stem}.main.so", f"{stem}.so") if os.path.exists(name)]


def compiled_libraries() -> list[str]:
    """Return the files of the CPU code that this process uses, and of Inductor's tests of vector instructions."""
    codecache: Any = sys.modules.get("torch._inductor.codecache")
    if codecache is None:
        return []
    keys = sorted({*codecache.CppCodeCache.cache, *codecache.CppPythonBindingsCodeCache.cache})
    return [*(name for key in keys for name in library_files(key)), *_tests_of_instructions()]


def _tests_of_instructions() -> list[str]:
    """Return the files of Inductor's tests of vector instructions that were compiled, each before its result."""
    files = []
    for library in sorted(glob.glob(os.path.join(glob.escape(inductor_folder()), "??", "*.so"))):
        source = Path(library).with_suffix(".cpp")
        if library.endswith(".main.so") or not source.exists():  # a kernel
            continue
        if "_chk_kernel" in source.read_text(errors="ignore"):
            files += [name for name in (library, f"{library}.load_ok") if os.path.exists(name)]
    return files


def cpp_compiler() -> str:
    """Return the version of the C++ compiler that Inductor uses, empty if there is none."""
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return cpp_builder.get_compiler_version_info(cpp_builder.get_cpp_compiler())
    except InvalidCxxCompiler:
        return ""
