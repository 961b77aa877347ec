"""A Ctrl-C that something drops, in the middle of a command: it comes again, and the command ends."""

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
REST = """
import sqcli.root
def run(_):
    hit()
    for _ in range(600):
        time.sleep(0.05)
    return 0
sqcli.root.run = run
from sqcli.app import main
main([])
"""


@pytest.mark.parametrize("what", HITS)
def test_a_dropped_interrupt_comes_again(what):
    code = "import ctypes, signal, time, weakref\n" + HITS[what] + REST
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=25)
    assert done.returncode == 130
    assert done.stderr == "sq: Interrupted.\n" and not done.stdout


def test_an_answered_interrupt_does_not_come_again():
    code = """
import signal, time
import sqcli.root
def run(_):
    signal.raise_signal(signal.SIGINT)
sqcli.root.run = run
from sqcli.app import main
try:
    main([])
except SystemExit as end:
    assert end.code == 130
time.sleep(0.5)
print("quiet")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and done.stdout == "quiet\n"
