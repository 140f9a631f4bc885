"""Recognising files that are not checkpoints, such as web pages and images saved by mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from porter.errors import CheckpointError

TORCHSCRIPT = (
    "a TorchScript program, and loading it could run code; where it was made: torch.save(module.state_dict(), ...). To "
    "verify it, name a callable that returns torch.jit.load(...)"
)
HEAD = 4096  # bytes read
KNOWN = (  # how files begin
    (rb"version https://git-lfs", "a git-LFS pointer: the file itself was not fetched; run git lfs pull"),
    (
        rb"\s*<(!doctype html|html|head|body)",
        "a web page (HTML); does its server ask to log in?",
    ),
    (rb"\s*<\?xml|\s*<Error>", "XML, perhaps a server's error message; fetch the file again"),
    (rb"\xff\xd8\xff", "a JPEG image, no checkpoint"),
    (rb"\x89PNG\r\n", "a PNG image, no checkpoint"),
    (rb"GIF8[79]a", "a GIF image, no checkpoint"),
    (rb"%PDF-", "a PDF, no checkpoint"),
    (rb".{8}\{\s*\"", "a safetensors file: name it .safetensors and it is read as an artifact"),
    (rb"\x80[\x02-\x05]", "a Python pickle, perhaps PyTorch's: name it .pth and it is read as an artifact"),
    (
        rb"\x08[\x01-\x0f]\x12",
        "an ONNX model, which porter writes but does not read; name the checkpoint or artifact it was made from",
    ),
    (rb"\s*[\[{]\s*[\"{\[\]}]", "JSON, no checkpoint"),
)


def is_torchscript(members: Iterable[str]) -> bool:
    """Whether a zip of these ``members`` is a program that torch.jit.save wrote."""
    return any(name.endswith("/constants.pkl") for name in members)


def recognised(path: Path) -> str | None:
    """What kind of file ``path`` is, with advice; None if it may be a graph. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    if not head:
        return "an empty file; fetch it again"
    for pattern, what in KNOWN:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return what
    text = re.fullmatch(rb"[\t\n\r\x20-\x7e]*", head)
    return "a text file, no checkpoint" if text else None
