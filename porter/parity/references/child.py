"""Running references and programs in a process of their own: TensorFlow, Keras, the interpreter, program files."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import numpy as np

from porter.errors import ParityError
from porter.parity.references.reference import Endpoints, Noise, Reference, Values
from porter.parity.references.wire import PROGRAMS, About, Closed, Header, Request, receive, send

# How long a process may keep us waiting in all, from its start to its last answer: SECONDS, and more for each pixel of
# the images. On two cores with a load of 15, the start with TensorFlow took 22 s, and large_100 in both precisions
# 7e-5 s a pixel; a step of training takes about three times that.
SECONDS, PER_PIXEL = 120.0, 2e-4

# Limit of an endpoint's values, in multiples of its image's: EdgeTPU's first expansion has 8 times as many
LARGEST_ENDPOINT = 64
SMALL = 1 << 20  # bytes, for images of a few pixels
# A file of fixed input size decides how large our process makes images: twice the pixels of DeepLab's 1025 x 2049
MOST_PIXELS = 1 << 22

# By kind of request, what is imported once for all of that kind; for those not listed, TensorFlow
LIBRARIES = {"tflite": "numpy", "onnx": "numpy", "pt2": "torch"}


class Child:
    """The process that runs one reference or program, and the connection to it.

    ``copy`` is the temporary folder that it reads, if any. The folder is kept for as long as this value.
    """

    def __init__(self, request: Request, copy: object = None) -> None:
        self.given, self.copy = request.given, copy
        self.unread = 0
        self.weights = request.memory if request.train else 0  # a gradient is as large as its weight
        self.failure: ParityError | None = None
        self.advice = "" if request.kind in PROGRAMS else " compare with another reference"
        library = LIBRARIES.get(request.kind, "tensorflow")
        try:
            self.connection = _connect(library)
        except OSError:  # the server was killed
            server.cache_clear()
            self.connection = _connect(library)
        self.allowed = self.left = SECONDS
        self.pid = 0
        self.pid = self.receive(0)[0].pid
        self._send(request)

    def receive(self, most: int) -> tuple[Header, np.ndarray | None]:
        """The next message. Raises ParityError with the process's own message, or if it ended or took too long.

        A process that has failed is not asked again: its first reason stays.
        """
        try:
            if self.failure is None:
                return self._receive(most)
        except ParityError as error:
            self.failure = error
        assert self.failure is not None
        raise self.failure

    def _receive(self, most: int) -> tuple[Header, np.ndarray | None]:
        began = time.monotonic()
        try:
            self.connection.settimeout(max(self.left, 1e-3))  # 0 would not wait for what has come
            header, array = receive(self.connection, most)
            self.left -= time.monotonic() - began
        except TimeoutError as error:
            self.end()
            raise ParityError(f"{self.given}: running it takes more than {self.allowed:.0f} s; stopped") from error
        except (Closed, OSError, ValueError, msgspec.MsgspecError) as error:
            self.end()
            raise ParityError(
                f"{self.given}: the process that ran it crashed or took more memory than it may; a damaged or hostile "
                f"file?{self.advice}"
            ) from error
        if header.kind == "failed":
            self.end()  # nothing comes after it
            message, *details = header.text.split("\n  ")
            raise ParityError(message, details)
        return header, array

    def ready(self) -> About:
        """Wait until the reference is built."""
        header, _ = self.receive(0)
        about = header.about
        assert about is not None
        if about.size is not None and (min(about.size) < 1 or about.size[0] * about.size[1] > MOST_PIXELS):
            self.end()
            raise ParityError(
                f"{self.given}: takes images of {about.size[0]}x{about.size[1]}; sides from 1 on and at most "
                f"{MOST_PIXELS} pixels are compared"
            )
        return about

    def run(self, images: np.ndarray, names: Sequence[str]) -> Endpoints:
        self._ask(Header("run", names=list(names), dtype=str(images.dtype), shape=list(images.shape)), images)
        self.unread = 8 * LARGEST_ENDPOINT * images.size + SMALL + self.weights
        while answer := self._next():
            yield answer

    def prepare(self, images: np.ndarray) -> np.ndarray:
        self._ask(Header("prepare", dtype=str(images.dtype), shape=list(images.shape)), images)
        _, prepared = self.receive(16 * images.size)
        assert prepared is not None
        return prepared

    def _next(self) -> tuple[str, Values] | None:
        """The next endpoint of the answer, at most ``unread`` bytes; None at its end."""
        header, values = self.receive(self.unread)
        if values is None:
            self.unread = 0
            return None
        return header.name, Values(values, header.noise and Noise(*header.noise))

    def _ask(self, header: Header, images: np.ndarray) -> None:
        while self.unread:  # skip the unread rest of the last answer
            self._next()
        more = PER_PIXEL * images.size / 3
        self.allowed, self.left = self.allowed + more, self.left + more
        self._send(header, images)

    def _send(self, header: Header | Request, images: np.ndarray | None = None) -> None:
        with suppress(Closed):  # its last message can still be received
            send(self.connection, header, images)

    def end(self) -> None:
        """Kill the process."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        self.connection.close()


def in_child(request: Request, copy: object = None) -> Reference:
    """The reference, or program, that ``request`` asks for, in a process of its own. Raises ParityError."""
    child = Child(request, copy)
    about = child.ready()
    prepares = about.precision == "levels" or about.takes
    return Reference(
        run=child.run,
        prepare=child.prepare if prepares else lambda images: images,
        **msgspec.structs.asdict(about),
    )


@functools.cache
def server(library: str) -> socket.socket:
    """The connection to the process that imports ``library`` and forks one for each reference.

    The first call starts it. An early call imports TensorFlow there while this process imports torch.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "porter.parity.references.server", str(theirs.fileno())]
    subprocess.Popen(  # ends when our end of the connection closes
        [*command, library],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )
    theirs.close()
    return ours


def _connect(library: str) -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(server(library), [b"+"], [theirs.fileno()])
    return ours
