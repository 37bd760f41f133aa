"""The parts that `examples/torture` gives to its peers in Python: `python3 peers.py NAME ROLE...`.

Does what a user of an executor would do. Both pools keep their workers, tell values and exceptions, and no statuses.
"""

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
import time

FOR_LONG = 600
NAME = sys.argv[1]


def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    time.sleep(FOR_LONG)


def echo(n):
    return n


def add(n):
    return n + 1


def leave(code):
    os._exit(code)


def executor(**options):
    return importlib.import_module(NAME).ProcessPoolExecutor(**options)


def report(figure, failures):
    found = {"figure": figure, "failed": len(failures), "failures": failures[:5], "late": []}
    print(json.dumps({"Report": found}), flush=True)


def parent():
    pool = executor()
    print("first", flush=True)
    for _ in range(200):
        pool.submit(time.sleep, FOR_LONG)
    time.sleep(FOR_LONG)


def deaf_parent():
    pool = executor(max_workers=4)
    for _ in range(4):
        pool.submit(deaf)
    time.sleep(FOR_LONG)


def exits(count):
    """Each result is the last thing that its worker says: one worker for each."""
    heard, failures = {}, []
    for n in range(count):
        try:
            with executor(max_workers=1) as pool:
                told = pool.submit(echo, n).result()
            heard[told] = heard.get(told, 0) + 1
        except Exception as error:
            failures.append(f"unit {n}: {error!r}")
    lost = sum(n not in heard for n in range(count))
    doubled = sum(times > 1 for times in heard.values())
    report(f"{lost} lost, {doubled} doubled", failures)


class SigAction(ctypes.Structure):
    """As glibc has it on 64 bits."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


SA_NOCLDWAIT = 2


def again_and_again(what):
    def loop():
        while True:
            what()

    threading.Thread(target=loop, daemon=True).start()


def steal():
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        pass
    time.sleep(0)


def fork():
    pid = os.fork()
    if pid == 0:
        os._exit(5)
    os.waitpid(pid, 0)


def be_hostile(hostility):
    if hostility == "ignores":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    elif hostility == "no-zombies":
        action = SigAction(flags=SA_NOCLDWAIT)
        ctypes.CDLL(None).sigaction(signal.SIGCHLD, ctypes.byref(action), None)
    elif hostility == "thief":
        again_and_again(steal)
    elif hostility == "forks":
        again_and_again(fork)
    elif hostility == "interrupted":
        for number in (signal.SIGALRM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
            signal.siginterrupt(number, True)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)


def hostile(hostility, count):
    be_hostile(hostility)
    failures, pool = [], executor()
    for n in range(count):
        try:
            if n % 3 == 0:
                value = pool.submit(add, n).result()
                if value != n + 1:
                    failures.append(f"start {n}: {value}")
                continue
            # A worker that ends breaks its pool, by an exception that says no more: then a user makes another.
            work = (leave, n % 255 + 1) if n % 3 == 1 else (os.abort,)
            try:
                pool.submit(*work).result()
                failures.append(f"start {n}: a value")
            except RuntimeError:
                pool.shutdown()
                pool = executor()
        except Exception as error:
            failures.append(f"start {n}: {error!r}")
            pool = executor()
    signal.setitimer(signal.ITIMER_REAL, 0)
    pool.shutdown()
    report(f"{len(failures)} wrong", failures)
    # The threads that disturb are not waited for.
    os._exit(0)


def main():
    role, arguments = sys.argv[2], sys.argv[3:]
    if role == "parent":
        parent()
    elif role == "deaf":
        deaf_parent()
    elif role == "exits":
        exits(int(arguments[0]))
    else:
        hostile(arguments[0], int(arguments[1]))


if __name__ == "__main__":
    main()
