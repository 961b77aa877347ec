"""A Ctrl-C that something drops comes again; one while a command ends does not change how; other programs keep their handlers."""

import subprocess
import sys

import pytest

HITS = {
    "a finalizer": """
class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
def hit():
    Finalized()
""",
    "a weak reference's callback": """
class Referred: pass
def hit():
    referred = Referred()
    reference = weakref.ref(referred, lambda _: signal.raise_signal(signal.SIGINT))
    del referred
""",
    "a callback of C code": """
def called():
    signal.raise_signal(signal.SIGINT)
    return 0
def hit():
    ctypes.CFUNCTYPE(ctypes.c_int)(called)()
""",
    "a bare except": """
def hit():
    try:
        signal.raise_signal(signal.SIGINT)
    except:
        pass
""",
    "an error of its own that is then forgotten": """
def hit():
    try:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException as error:
            raise ImportError("no such extension") from error
    except ImportError:
        pass
""",
    "three of them": """
def hit():
    for _ in range(3):
        try:
            signal.raise_signal(signal.SIGTERM)
        except:
            pass
""",
}
MAIN = """
import sqcli.root
sqcli.root.run = run
from sqcli.app import main
main([])
"""
REST = (
    """
def run(_):
    hit()
    for _ in range(600):
        time.sleep(0.05)
    return 0
"""
    + MAIN
)


@pytest.mark.parametrize("what", HITS)
def test_a_dropped_interrupt_comes_again(what):
    code = "import ctypes, signal, time, weakref\n" + HITS[what] + REST
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=25)
    assert done.returncode == 130
    assert done.stderr == "sq: Interrupted.\n" and not done.stdout


def run_code(code: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", "import atexit, os, signal, sys, threading, time\n" + code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_an_answered_interrupt_does_not_come_again():
    code = """
def run(_):
    signal.raise_signal(signal.SIGINT)
""" + MAIN.replace(
        "main([])",
        """
try:
    main([])
except SystemExit as end:
    assert end.code == 130
time.sleep(0.5)
print("quiet")
""",
    )
    done = run_code(code)
    assert done.returncode == 0 and done.stdout == "quiet\n"


@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
def test_a_second_signal_ends_at_once_with_the_same_code(second):
    code = f"""
def twice():
    signal.raise_signal(signal.{second})
    time.sleep(20)
def run(_):
    atexit.register(twice)
    signal.raise_signal(signal.SIGINT)
"""
    done = run_code(code + MAIN)
    assert done.returncode == 130 and done.stderr == "sq: Interrupted.\n"


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_after_the_work_changes_nothing(name, code):
    """At the last moment too, when modules are taken down."""
    late = f"""
class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.{name}, sleep=time.sleep):
        kill(me, number)
        sleep(0.1)
sys.modules["kept until the end"] = Late()
def run(_):
    return {code}
"""
    done = run_code(late + MAIN)
    assert (done.returncode, done.stderr) == (code, "")
    at_exit = f"def run(_):\n    atexit.register(lambda: signal.raise_signal(signal.{name}))\n    return {code}\n"
    done = run_code(at_exit + MAIN)
    assert (done.returncode, done.stderr) == (code, "")


def test_a_program_that_calls_main_keeps_its_handlers_and_its_alarm():
    code = """
heard = []
numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
own = {n: (lambda number, _: heard.append(number)) for n in numbers}
for n, handler in own.items():
    signal.signal(n, handler)
signal.setitimer(signal.ITIMER_REAL, 0.3)
def ending():
    signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGALRM, signal.SIGTERM]
    print("to the end")
atexit.register(ending)
def run(_):
    time.sleep(1)
    return 0
""" + MAIN.replace(
        "main([])",
        """
for _ in range(2):
    try:
        main([])
    except SystemExit as end:
        assert end.code == 0
    assert all(signal.getsignal(n) is own[n] for n in numbers)
assert heard == [signal.SIGALRM]
print("kept")
sys.exit(5)
""",
    )
    done = run_code(code)
    assert (done.returncode, done.stdout) == (5, "kept\nto the end\n"), done.stderr
