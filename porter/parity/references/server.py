"""The process that runs references and programs: it imports a library once, then forks a process for each of them.

A stranger's graph runs only there, under a memory limit, and leaves nothing behind for the next one.
porter.parity.references.child starts it, and ends a process that takes too long.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from porter.errors import ParityError, PorterError
from porter.mapping.options import PortOptions
from porter.parity.candidates.programs import exported_program, onnx_program
from porter.parity.references.reference import Reference
from porter.parity.references.wire import PROGRAMS, About, Closed, Header, Request, receive, receive_bytes, send
from porter.port import Port, plan_opened
from porter.process import die_with_parent
from porter.sources.bounds import limit_memory
from porter.sources.checkpoint import open_checkpoint

MAX_IMAGES = 1 << 32  # bytes of a batch; they come from our own side


def main() -> None:
    """Serve connections that come over the socket ``argv[1]``, until it is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forked processes are not waited for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted check closes its connections
    if sys.argv[2] == "tensorflow":
        from porter.parity.references.live_tensorflow import tensorflow

        with suppress(ParityError):  # each reference that needs it says so
            tensorflow()
    elif sys.argv[2] == "torch":
        import torch  # noqa: F401 - once, and its memory does not count as a program's
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            return
        server = os.getpid()
        if os.fork() == 0:
            control.close()
            code = 1
            try:
                die_with_parent(server)
                _serve(socket.socket(fileno=descriptors[0]))
                code = 0
            except Closed:
                code = 0
            finally:
                os._exit(code)
        os.close(descriptors[0])


def _serve(connection: socket.socket) -> None:
    send(connection, Header("started", pid=os.getpid()))
    encoded, _ = receive_bytes(connection, 0)
    request = msgspec.msgpack.decode(encoded, type=Request)
    try:
        limit_memory(request.memory)
        reference = build(request)
        facts = (reference.name, reference.precision, reference.size, reference.missing, reference.takes)
        about = About(*facts, reference.versions or _versions())
        send(connection, Header("ready", about=about))
        while True:
            _answer(connection, reference)
    except PorterError as error:
        send(connection, Header("failed", text=str(error)))
    except Closed:
        raise
    except MemoryError:
        send(connection, Header("failed", text=f"{request.given}: running it takes more memory than it may"))
    except Exception as error:  # TensorFlow, Keras and the interpreter raise anything for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        send(connection, Header("failed", text=f"{request.given}: cannot be run ({reason[:300]})"))


def _answer(connection: socket.socket, reference: Reference) -> None:
    header, images = receive(connection, MAX_IMAGES)
    assert images is not None
    if header.kind == "prepare":
        prepared = reference.prepare(images)
        send(connection, Header("values", dtype=str(prepared.dtype), shape=list(prepared.shape)), prepared)
        return
    for name, (values, noise) in reference.run(images, header.names):
        about = Header("values", name, dtype=str(values.dtype), shape=list(values.shape), noise=noise)
        send(connection, about, values)
    send(connection, Header("done"))


def build(request: Request) -> Reference:
    """The reference, or the program, that ``request`` asks for, in this process. Raises PorterError."""
    path = Path(os.fsdecode(request.path))
    if request.kind in PROGRAMS:
        return onnx_program(path) if request.kind == "onnx" else exported_program(path)
    port = _port(request)
    if request.train:
        from porter.parity.references.training_step import keras_training, tf_nn_training

        return (keras_training if request.kind == "keras" else tf_nn_training)(port, request.drop_class)
    if request.kind == "keras":
        from porter.parity.references.keras_model import keras_model

        return keras_model(port)
    if request.kind == "tflite":
        from porter.parity.references.interpreter import interpreter

        return interpreter(port)
    if request.kind == "tf.nn":
        from porter.parity.references.tf_nn import tf_nn

        return tf_nn(port)
    from porter.parity.references.graphs import frozen_graph, meta_graph, saved_model

    if request.kind == "saved_model":
        return saved_model(port)
    return meta_graph(port) if request.graph is None else frozen_graph(Path(os.fsdecode(request.graph)), port)


def _port(request: Request) -> Port:
    assert request.mapping is not None
    opened = replace(open_checkpoint(os.fsdecode(request.path), request.weights), given=request.given)
    return plan_opened(opened, request.mapping, PortOptions(fake_quant=request.fake_quant))


def _versions() -> dict[str, str]:
    module = sys.modules.get("tensorflow")
    return {"tensorflow": module.__version__} if module else {}


if __name__ == "__main__":
    main()
