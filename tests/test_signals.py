"""What SIGTERM and SIGINT do to a worker, wherever its threads are just then."""

from __future__ import annotations

import subprocess
import sys

import pytest

SECONDS = 20
BEGIN = """
import os, signal, sys, threading, time
from rpc.signals import stopped_by_signals
stopped, asked = threading.Lock(), []
stopped.acquire()
def stop():
    asked.append(1)
    stopped.release()
def hand_back():
    print("handed back", flush=True)
def kill(number=signal.SIGTERM):
    signal.pthread_kill(threading.get_ident(), number)
"""


def run(program: str) -> tuple[int, str]:
    program = BEGIN + program
    ended = subprocess.run(
        [sys.executable, "-c", program], timeout=SECONDS, stdout=subprocess.PIPE, text=True
    )
    return ended.returncode, ended.stdout


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_main_thread_that_is_blocked_for_good_does_not_keep_a_signal(number: str) -> None:
    """The kernel may give it to any thread, and it may come between two looks of the main thread."""
    assert run(f"""
with stopped_by_signals(stop, hand_back, 60):
    threading.Thread(target=kill, args=[signal.{number}]).start()
    stopped.acquire()
print(len(asked))
""") == (0, "1\n")


def test_what_is_left_is_handed_back_after_the_grace_period() -> None:
    assert run("""
with stopped_by_signals(lambda: None, hand_back, 0.1):
    threading.Thread(target=kill).start()
    stopped.acquire()
""") == (0, "handed back\n")


def test_it_works_without_the_pipe_that_something_else_has_replaced() -> None:
    """An event loop in a handler, say."""
    assert run("""
with stopped_by_signals(stop, hand_back, 60):
    signal.set_wakeup_fd(-1)
    os.kill(os.getpid(), signal.SIGTERM)
    stopped.acquire()
print(len(asked))
""") == (0, "1\n")


def test_all_is_as_it_was_when_the_block_has_ended() -> None:
    assert run("""
before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
ear, mouth = os.pipe()
os.set_blocking(mouth, False)
signal.set_wakeup_fd(mouth)
for _ in range(3):
    with stopped_by_signals(stop, hand_back, 60):
        pass
assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
assert signal.set_wakeup_fd(-1) == mouth
while threading.active_count() > 1: pass
print(asked, len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else "")
""")[1].startswith("[] ")


def test_a_forked_child_has_nothing_of_it() -> None:
    """A signal to a child of a handler ends that child, and nothing else."""
    assert run("""
with stopped_by_signals(stop, hand_back, 60):
    def child():
        if not (pid := os.fork()):
            time.sleep(60)
            os._exit(1)
        os.kill(pid, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), asked, flush=True)
        if not (pid := os.fork()):
            os._exit(len(asked))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), asked)
    thread = threading.Thread(target=child)
    thread.start()
    thread.join()
""") == (0, "-15 []\n0 []\n")


def test_a_block_in_another_thread_does_not_hear_signals() -> None:
    assert run("""
def block():
    with stopped_by_signals(stop, hand_back, 60):
        print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
thread = threading.Thread(target=block)
thread.start()
thread.join()
""") == (0, "True\n")


@pytest.mark.parametrize("left", [
    "threading.Thread(target=time.sleep, args=[60], name='loiterer').start()",
    "import concurrent.futures as f; f.ThreadPoolExecutor(1, 'loiterer').submit(time.sleep, 60)",
    "import atexit; atexit.register(time.sleep, 60)",
], ids=["thread", "pool", "exit"])  # fmt: skip
def test_what_handlers_left_behind_does_not_keep_the_process(left: str) -> None:
    code, said = run(f"""
import logging
logging.basicConfig(stream=sys.stdout, format="%(message)s")
with stopped_by_signals(stop, hand_back, 0.1):
    {left}
    kill()
    stopped.acquire()
print("stopped")
""")
    assert code == 0
    assert said.startswith("stopped\nending although this still runs: ")
    assert ("loiterer" in said) == ("loiterer" in left)


def test_a_program_that_goes_on_after_the_block_does() -> None:
    assert run("""
import rpc.signals
rpc.signals.AT_LEAST = 0.05
with stopped_by_signals(stop, hand_back, 0.05):
    kill()
    stopped.acquire()
while any(each.name == "rpc-grace" for each in threading.enumerate()):
    time.sleep(0.01)
threading.Thread(target=lambda: (time.sleep(0.3), print("went on"))).start()
""") == (0, "went on\n")


def test_threads_that_end_in_time_are_waited_for() -> None:
    assert run("""
with stopped_by_signals(stop, hand_back, 60):
    threading.Thread(target=lambda: (time.sleep(0.3), print("done"))).start()
    kill()
    stopped.acquire()
""") == (0, "done\n")
