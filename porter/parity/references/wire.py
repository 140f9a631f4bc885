"""Messages between a check and the process that runs its reference: a msgpack header and the bytes of an array."""

from __future__ import annotations

import socket
import struct

import msgspec
import numpy as np

from porter.mapping.schema import VariantMapping
from porter.network.node import Size
from porter.parity.references.reference import Precision
from porter.sources.weights import Weights

LENGTHS = struct.Struct("<IQ")  # of the header, of the array
MAX_HEADER = 1 << 20
PROGRAMS = ("onnx", "pt2")  # suffixes of programs, and kinds of requests for them


class Request(msgspec.Struct, frozen=True):
    """What to run: a reference, or a candidate that is a program.

    ``kind`` is one of choose.KINDS and ``path`` the checkpoint, read with ``mapping``; or ``kind`` is one of PROGRAMS
    and ``path`` the program. ``given``: its name in messages. ``graph``: the frozen graph to run, if the checkpoint is
    another file. ``memory``: bytes that the process may take beyond its memory at the start. ``train``: run a step of
    training, with ``drop_class`` left out of the loss.
    """

    kind: str
    path: bytes  # as the system has it, which need not be UTF-8
    given: str
    memory: int
    weights: Weights = "auto"
    mapping: VariantMapping | None = None
    graph: bytes | None = None
    fake_quant: bool | None = None
    train: bool = False
    drop_class: int | None = None


class About(msgspec.Struct, frozen=True):
    """Attributes of a Reference, as its process sends them."""

    name: str
    precision: Precision
    size: Size | None
    missing: tuple[str, ...]
    takes: str
    versions: dict[str, str]


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sent before an array (``dtype``, ``shape``), or by itself.

    ``kind``: ``started`` (``pid``), ``ready`` (``about``), ``run`` or ``prepare`` (with images), ``values`` (``name``,
    ``noise``), ``done``, ``failed`` (``text``).
    """

    kind: str
    name: str = ""
    names: list[str] = []
    dtype: str = ""
    shape: list[int] = []
    noise: tuple[float, float] | None = None
    text: str = ""
    pid: int = 0
    about: About | None = None


class Closed(Exception):
    """The other side has closed the connection."""


def send(connection: socket.socket, header: Header | Request, array: np.ndarray | None = None) -> None:
    """Send ``header``, and ``array``, which it must describe. Raises Closed."""
    encoded = msgspec.msgpack.encode(header)
    payload = b"" if array is None else np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    try:
        connection.sendall(LENGTHS.pack(len(encoded), len(payload)) + encoded)
        connection.sendall(payload)
    except OSError as error:
        raise Closed(str(error)) from error


def receive_bytes(connection: socket.socket, most: int) -> tuple[bytes, memoryview]:
    """The next header, encoded, and its array's bytes, at most ``most``. Raises Closed or ValueError."""
    header, payload = LENGTHS.unpack(_exactly(connection, LENGTHS.size))
    if header > MAX_HEADER or payload > most:
        raise ValueError(f"a message of {header} and {payload} bytes")
    return bytes(_exactly(connection, header)), _exactly(connection, payload)


def receive(connection: socket.socket, most: int) -> tuple[Header, np.ndarray | None]:
    """The next message. Raises Closed if the other side has gone, ValueError if it is malformed."""
    encoded, payload = receive_bytes(connection, most)
    header = msgspec.msgpack.decode(encoded, type=Header)
    if not header.dtype:
        return header, None
    if header.dtype not in ("float32", "float64"):
        raise ValueError(f"an array of {header.dtype}")
    return header, np.frombuffer(payload, header.dtype).reshape(header.shape)


def _exactly(connection: socket.socket, size: int) -> memoryview:
    data = memoryview(bytearray(size))
    done = 0
    while done < size:
        count = connection.recv_into(data[done:])
        if not count:
            raise Closed("the connection ended")
        done += count
    return data
