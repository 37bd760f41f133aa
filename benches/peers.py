"""The peers in Python, each a server as those in server.rs: `python3 peers.py NAME`.

Does what it is told on its standard input, and says how long it took. Ends at once if there is no such module.
"""

import collections
import importlib
import multiprocessing
import signal
import sys
import time

now = time.monotonic_ns

# Longer than any command takes; who hangs is ended, and left out of the report.
PATIENCE = 300


def tell():
    """The unit of most measurements: its first line is when it runs."""
    return now()


def echo(value):
    """The unit that sends a value back."""
    return value


def answer(pipe, work, arguments):
    """What a process does that has a pipe for its result."""
    pipe.send(work(*arguments))


class Started:
    """A process that was started, and where its result comes from: `result` waits for that, `end` for the process."""

    def __init__(self, process, pipe):
        self.process, self.pipe = process, pipe

    def result(self):
        with self.pipe:
            return self.pipe.recv()

    def end(self):
        self.process.join()


class Processes:
    """`multiprocessing.Process`, by one of its start methods; `begin` starts one."""

    def __init__(self, method):
        self.context = multiprocessing.get_context(method)

    def begin(self, work, *arguments):
        reader, writer = self.context.Pipe(duplex=False)
        with writer:
            process = self.context.Process(target=answer, args=(writer, work, arguments))
            process.start()
        return Started(process, reader)


class Ancestor:
    """The library that ours descends from. It brings no result home: that goes through a pipe, as above."""

    def __init__(self):
        library = importlib.import_module("offspring")
        # It is from when this was the default, and can do with no other.
        multiprocessing.set_start_method("fork")

        class Task(library.Subprocess):
            def init(self, *arguments):
                self.arguments = arguments

            def run(self):
                answer(*self.arguments)

        self.task = Task

    def begin(self, work, *arguments):
        reader, writer = multiprocessing.Pipe(duplex=False)
        with writer:
            task = self.task(writer, work, arguments)
        # It keeps every task until the exit: not what that was given, then.
        task.arguments = None
        return Started(task.process, reader)


class Submitted:
    """The one thing that an executor was made for; the worker is joined with the executor."""

    def __init__(self, executor, future):
        self.executor, self.future = executor, future

    def result(self):
        return self.future.result()

    def end(self):
        self.executor.shutdown()


class Executors:
    """A fresh executor of one worker for each start: a worker that is there already is not started, but used again."""

    def __init__(self, module):
        self.executor = importlib.import_module(module).ProcessPoolExecutor

    def begin(self, work, *arguments):
        executor = self.executor(max_workers=1)
        return Submitted(executor, executor.submit(work, *arguments))


def way(name):
    """The way of that name."""
    if name == "offspring":
        return Ancestor()
    if name in ("futures", "loky"):
        return Executors({"futures": "concurrent.futures", "loky": "loky"}[name])
    return Processes(name)


def start(way):
    """When the call returned, the first line ran, the result was there, and all was over."""
    began = now()
    started = way.begin(tell)
    called = now()
    first = started.result()
    result = now()
    started.end()
    return [time - began for time in (called, first, result, now())]


def rate(way, count, under_way):
    """So many, with so many under way at any time; units per second."""
    under = collections.deque()

    def finish():
        started = under.popleft()
        started.result()
        started.end()

    began = now()
    for _ in range(count):
        if len(under) == under_way:
            finish()
        under.append(way.begin(tell))
    while under:
        finish()
    return count * 1e9 / (now() - began)


def carry(way, kind, size):
    """There and back, until all is over."""
    value = {"text": "x", "bytes": b"\xc8"}[kind] * size
    began = now()
    started = way.begin(echo, value)
    back = started.result()
    started.end()
    took = now() - began
    assert back == value
    return took


def serve(name):
    """The server's life."""
    try:
        chosen = way(name)
    except ImportError:
        sys.exit(1)
    memory = []
    for line in sys.stdin:
        signal.alarm(PATIENCE)
        command, *words = line.split()
        if command == "start":
            reply = " ".join(map(str, start(chosen)))
        elif command == "rate":
            reply = rate(chosen, *map(int, words))
        elif command == "carry":
            reply = carry(chosen, words[0], int(words[1]))
        elif command == "add" and words[0] == "memory":
            # Not zeros: those would be promised, and not touched.
            memory.append(bytearray(b"\x01") * int(words[1]))
            reply = "done"
        else:
            sys.exit(f"no such command: {line}")
        signal.alarm(0)
        print(reply, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
