"""Tools to break a fleet with: a network that can be cut, a tiny disk, a clock that is wrong.

For `benchmarks/deploy_faults.py`.
"""

import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simulations.deployment.local import Fleet
from simulations.deployment.node import POLL
from tests.deployment import live_fleet as live

__all__ = ["POLL", "Proxy", "fill", "pids", "skewed", "tiny_disk"]

SKEW = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static long skew(void) { const char *s = getenv("SKEW_SECONDS"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t id, struct timespec *t) {
    int (*plain)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int done = plain(id, t);
    if (id == CLOCK_REALTIME) t->tv_sec += skew();
    return done;
}
time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}
int gettimeofday(struct timeval *v, void *zone) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    v->tv_sec = t.tv_sec;
    v->tv_usec = t.tv_nsec / 1000;
    return 0;
}
"""
"""A library that shifts the clock of the process that it is loaded into."""


class Proxy:
    """A way to a port of loopback that can be cut: it resets connections and takes no new ones."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.whole = True
        self.done = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.others: dict[socket.socket, socket.socket] = {}
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "Proxy":
        self.thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.done = True
        self.thread.join()
        self.listener.close()

    def cut(self) -> None:
        """Let nothing through any more."""
        self.whole = False

    def heal(self) -> None:
        """Let everything through again."""
        self.whole = True

    def _serve(self) -> None:
        while not self.done:
            for key, _ in self.selector.select(0.1):
                source = key.fileobj
                assert isinstance(source, socket.socket)
                if source is self.listener:
                    self._accept()
                elif source in self.others:
                    self._pass_on(source)
            if not self.whole or self.done:
                for source in list(self.others):
                    self._drop(source)

    def _accept(self) -> None:
        near, _ = self.listener.accept()
        try:
            if not self.whole:
                raise ConnectionError
            far = socket.create_connection(("127.0.0.1", self.to))
        except OSError:
            near.close()
            return
        for one, other in ((near, far), (far, near)):
            self.others[one] = other
            self.selector.register(one, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        try:
            data = source.recv(65536)
            if not data:
                raise ConnectionError
            self.others[source].sendall(data)
        except OSError:
            self._drop(source)

    def _drop(self, source: socket.socket) -> None:
        other = self.others.pop(source, None)
        for one in (source, other):
            if one is not None:
                self.others.pop(one, None)
                with suppress(KeyError, ValueError):
                    self.selector.unregister(one)
                one.close()


@contextmanager
def tiny_disk(place: Path, size: str) -> Iterator[None]:
    """Mount a file system of a size over a folder, and take it away again."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(path: Path) -> None:
    """Write a file until its disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def skewed(folder: Path, seconds: int) -> dict[str, str]:
    """Return what a process finds in its environment whose clock is to be wrong by `seconds`."""
    library = folder / "skew.so"
    if not library.exists():
        source = folder / "skew.c"
        source.write_text(SKEW)
        compiler = os.environ.get("CC", "cc")
        command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
    return {"LD_PRELOAD": str(library), "SKEW_SECONDS": str(seconds)}


def pids(fleet: Fleet, nodes: int) -> list[int]:
    """Return the processes of the nodes themselves that run."""
    homes = [fleet.folder / f"node-{node}-home" for node in range(nodes)]
    return [
        pid
        for home in homes
        for pid, (_, line) in live.processes_of(home).items()
        if "deployment.node" in line
    ]
