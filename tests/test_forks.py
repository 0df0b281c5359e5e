"""The program that tests begin instead of an interpreter: what it is given, and how it ends."""

import functools
import os
import signal
import subprocess
import sys

import forks
import pytest

PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
WAITING = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
SPAWNING = """
import multiprocessing
def square(x): return x * x
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(square, [2, 3]))
"""


def called(*arguments, program=None, **options):
    done = subprocess.run([program or forks.python(), *arguments], capture_output=True, text=True, **options)
    return done.returncode, done.stdout, done.stderr


def both(*arguments, **options):
    """Return what the program does, and an interpreter."""
    return [called(*arguments, program=program, **options) for program in (forks.python(), sys.executable)]


@pytest.mark.parametrize(
    "code",
    [
        "import os, sys; print(sys.argv, sys.orig_argv[1:], sys.path[0], os.getcwd(), os.environ['MINE'], sys.stdin.read())",
        "import sys; sys.exit('said')",
        "import sys; sys.exit(3)",
        "import sys; sys.exit()",
        "import atexit, threading; atexit.register(print, 'end'); threading.Timer(0.1, print, ['first']).start()",
        "import os; os.abort()",
        "raise KeyError(1)",
        "import atexit, sys; atexit.register(lambda: print(sys.last_value)); raise KeyError(2)",
        "import __main__; name = 5; print(__main__.name, __name__)",
    ],
)
def test_code_is_run_as_by_an_interpreter(code, tmp_path):
    options = {"input": "typed", "cwd": tmp_path, "env": os.environ | {"MINE": "5"}}
    one, other = both("-c", code, "a", "-b", **options)
    assert one[:2] == other[:2]
    assert one[2].splitlines()[-1:] == other[2].splitlines()[-1:]


def test_scripts_and_modules_are_run_as_by_an_interpreter(tmp_path):
    (tmp_path / "script.py").write_text(SPAWNING + "    print(__file__, multiprocessing.sys.path[0])")
    one, other = both("-u", str(tmp_path / "script.py"))
    assert one == other == (0, f"[4, 9]\n{tmp_path}/script.py {tmp_path}\n", "")
    one, other = both("-W", "error", "-m", "json.tool", input='{"a": 1}')
    assert one == other == (0, '{\n    "a": 1\n}\n', "")


def test_warnings_are_errors_if_it_is_said():
    code = "import warnings; warnings.warn('mine')"
    assert called("-c", code)[0] == 0
    assert called("-W", "error", "-c", code)[0] == 1
    assert called("-c", code, env=os.environ | {"PYTHONWARNINGS": "error"})[0] == 1


def test_torch_is_imported_and_each_copy_draws_random_numbers_of_its_own():
    code = (
        "import sys; torch = sys.modules['torch']; print(torch.rand(1), sys.modules['numpy'].random.rand())"
    )
    assert called("-c", code)[1] != called("-c", code)[1]


def test_hashes_differ_between_ranks():
    one, other, third = (called("-c", "print(hash('a'))", env=os.environ | {"RANK": rank}) for rank in "012")
    assert one == third != other


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("interruptible")
def test_a_signal_is_passed_on(number):
    with subprocess.Popen([forks.python(), "-c", WAITING], **PIPES) as process:
        assert int(process.stdout.readline()) == forks.pid(process)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == -number
    assert errors.splitlines()[-1:] == ["KeyboardInterrupt"] * (number == signal.SIGINT)


@pytest.mark.parametrize("handler", ["", "import signal; signal.signal(2, lambda *_: os._exit(7))"])
def test_a_signal_that_is_ignored_from_the_beginning_reaches_a_handler(handler):
    code = f"import os; {handler}\nprint(flush=True); input(); os._exit(3)"
    statuses = []
    for program in (sys.executable, forks.python()):
        ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
        with subprocess.Popen([program, "-c", code], preexec_fn=ignore, **PIPES) as process:
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            if not handler:
                process.communicate("\n")
            process.wait()
        statuses.append(process.returncode)
    assert statuses == ([7, 7] if handler else [3, 3])


def test_a_copy_is_killed():
    with subprocess.Popen([forks.python(), "-c", WAITING], **PIPES) as process:
        process.stdout.readline()
        forks.kill(process)
        assert process.stdout.read() == ""
        assert process.returncode == -signal.SIGKILL


def test_a_copy_ends_with_its_client():
    with subprocess.Popen([forks.python(), "-c", WAITING], **PIPES) as process:
        process.stdout.readline()
        process.kill()
        assert process.stdout.read() == ""  # the end of the pipe is closed in the copy
