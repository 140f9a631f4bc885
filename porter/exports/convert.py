"""``convert``: a TensorFlow checkpoint, or a port of one, in; an artifact out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from porter.artifacts.artifact import Artifact, find_artifact, save_artifact
from porter.atomic import check_folder, check_output, make_folder, refuse_existing, write_bytes
from porter.errors import MappingError, PorterError
from porter.exports import files
from porter.mapping.options import DEFAULT_OPTIONS, ArtifactLayout, PathLike, PortOptions
from porter.port import Port, carry_out_port, plan_opened, plan_port
from porter.process import keep_freed_memory
from porter.sources.locate import locate
from porter.sources.remote import is_url
from porter.sources.v1 import SHARDED
from porter.sources.weights import Weights

AT_ONCE = 3  # checkpoints: two are computed, more are not under Python's lock, and one waits for the disk
REMOTE_FILE = re.compile(r"\.(?:index|meta|data-\d{5}-of-\d{5})$")  # of a checkpoint's files behind a URL


def convert(
    checkpoint: PathLike,
    output: PathLike | None = None,
    variant: str | None = None,
    *,
    mapping: PathLike | None = None,
    weights: Weights = "auto",
    layout: ArtifactLayout = "timm",
    keep_background: bool = False,
    num_classes: int | None = None,
    fold_bn: bool = False,
    fake_quant: bool | None = None,
    backbone: bool = False,
    boxes: bool = False,
    force: bool = False,
) -> tuple[Path, Port]:
    """Port a TensorFlow checkpoint, or take a port of one further, and write an artifact.

    Args:
        checkpoint: What ``open_checkpoint`` takes; or a port, e.g. a ``.pth`` that was trained further.
        output: A ``.pth``, ``.safetensors``, ``.onnx`` or ``.tflite``; ``<variant>.pth`` when left out.
        variant: Found from the shapes when left out.
        mapping: A mapping file of your own.
        weights: ``ema`` or ``raw`` where both exist; ``auto`` prefers the averages, unless a SavedModel's graph has the
            raw weights.
        layout: ``timm`` makes the weights exact where the squeeze-excite gate is 1/6, ``slim`` leaves them untouched.
        keep_background: Keep class 0 of slim's 1,001.
        num_classes: Refuse a classifier of another size.
        fold_bn: Fold batch norms into the convolutions before them.
        fake_quant: False makes a float network of a source that was trained for 8 bits.
        backbone: Take the network that is inside a larger model: of a segmenter, a detector, a model of your own.
        boxes: Of a detector, decode and suppress the boxes in the graph, an ``.onnx`` or ``.tflite`` for one image.
        force: Overwrite ``output``.

    Returns:
        The path written, and the port: its mapping, network and plan.

    Raises:
        PorterError: On bad input. No file is left behind.

    Example:
        >>> path, port = porter.convert(source, folder / "small_075.pth")
        >>> port.mapping.variant, port.plan.num_classes
        ('small_075', 1000)
    """
    if output is None:
        check_folder(Path())
    else:
        check_output(Path(output), force)
        if Path(output).suffix not in files.OUTPUT_SUFFIXES:
            raise PorterError(
                f"{Path(output)}: the output's name must end in one of {', '.join(files.OUTPUT_SUFFIXES)}"
            )
    if boxes and Path(output or ".pth").suffix not in files.GRAPH_SUFFIXES:
        raise PorterError(f"boxes: only in an output that is one of {', '.join(files.GRAPH_SUFFIXES)}")
    options = PortOptions(
        variant, mapping, weights, layout, keep_background, num_classes, fold_bn, fake_quant, backbone
    )
    port = plan_port(checkpoint, options)
    path = Path(output if output is not None else f"{port.mapping.variant}.pth")
    if path.suffix == ".tflite" and port.plan.ranges:  # integers are the source's own weights
        port = plan_opened(port.checkpoint, port.chosen, replace(options, layout="slim"))
    refuse_existing(path, force)
    _save(path, port, carry_out_port(port), force, boxes)
    return path, port


def _save(path: Path, port: Port, artifact: Artifact, force: bool, boxes: bool = False) -> None:
    if path.suffix in files.GRAPH_SUFFIXES:
        size = port.mapping.input.sides
        write_bytes(path, files.export_bytes(path.suffix, port.target_network, artifact, size, boxes), force)
    else:
        save_artifact(path, artifact, force)


def convert_all(
    checkpoints: Sequence[str],
    folder: Path,
    options: PortOptions = DEFAULT_OPTIONS,
    *,
    suffix: str = ".pth",
    force: bool = False,
) -> Iterator[tuple[Path, Port]]:
    """Port several checkpoints, of one training run say, into ``folder`` as ``<name of the checkpoint><suffix>``.

    Results as for ``convert``, in the order of ``checkpoints``. The variant of the first is tried first for the others,
    and AT_ONCE are ported at a time. Raises PorterError before the first where an output exists or a name is no
    checkpoint's, and at the first that cannot be ported; what was written by then stays.
    """
    from concurrent.futures import ThreadPoolExecutor

    check_folder(folder)
    stems = one_each(checkpoints, options.weights)
    checkpoints, names = list(stems), [f"{stem}{suffix}" for stem in stems.values()]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise PorterError(f"{folder}: two checkpoints would become {twice[0]}; convert them one by one")
    for name in names:
        refuse_existing(folder / name, force)

    def one(checkpoint: str, name: str) -> tuple[Path, Port]:
        try:
            port = plan_port(checkpoint, options)
        except MappingError:
            if options is given:
                raise
            port = plan_port(checkpoint, given)  # of another variant than the first
        _save(folder / name, port, carry_out_port(port), force)
        return folder / name, port

    make_folder(folder)
    keep_freed_memory()
    given = options
    done = one(checkpoints[0], names[0])
    if options.mapping is None:
        options = replace(options, variant=done[1].mapping.variant)
    yield done
    with ThreadPoolExecutor(AT_ONCE) as pool:  # reading, hashing and writing leave Python's lock to others
        yield from pool.map(one, checkpoints[1:], names[1:])


def one_each(checkpoints: Sequence[str], weights: Weights = "auto") -> dict[str, str]:
    """The checkpoints that ``checkpoints`` name, each once and in the order of first mention -> a name for the output.

    A shell makes of ``run/model-*`` every file of each of them. Raises CheckpointError where a name is no checkpoint's.
    """
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for given in checkpoints:
        if is_url(given):
            prefix = REMOTE_FILE.sub("", given)
            # A .meta without the other files: the graph in it may be what is wanted
            opened = given if given.endswith(".meta") and not {prefix, f"{prefix}.index"} & {*checkpoints} else prefix
            found.setdefault(("", opened), (opened, Path(opened).name))
            continue
        if find_artifact(given):
            raise PorterError(f"{given}: is a port, no checkpoint; convert ports one by one")
        source = locate(Path(given), weights)
        opened = given
        if source.path.parent == Path(given).parent:  # a file of it; else a folder, after which the output is named
            opened = str(source.path)
        stem = Path(opened).name
        if sharded := SHARDED.fullmatch(stem):
            stem = sharded[1]
        found.setdefault((source.kind, os.path.realpath(source.path)), (opened, stem))
    return dict(found.values())
