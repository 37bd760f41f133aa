"""`multiprocessing.Queue` between two processes, told what to do as carriers.rs does it: `stream N`, `rounds N`."""

import multiprocessing
import sys
import time

now = time.monotonic_ns

# As carriers.rs has them: the first eight bytes say how many messages are asked for; none: this one, back.
SIZE = 32


def asking(count):
    return count.to_bytes(8, "little") + b"\xc8" * (SIZE - 8)


def answer(to, back):
    """What the other process does, until it is told to end."""
    while (message := to.get()) is not None:
        for _ in range(int.from_bytes(message[:8], "little") or 1):
            back.put(message)


def serve():
    to, back = multiprocessing.Queue(1024), multiprocessing.Queue(1024)
    other = multiprocessing.Process(target=answer, args=(to, back), daemon=True)
    other.start()
    for line in sys.stdin:
        command, count = line.split()
        began = now()
        if command == "stream":
            to.put(asking(int(count)))
            for _ in range(int(count)):
                back.get()
        else:
            for _ in range(int(count)):
                to.put(asking(0))
                back.get()
        print(now() - began, flush=True)
    to.put(None)
    other.join()


if __name__ == "__main__":
    serve()
