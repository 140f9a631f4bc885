"""``convert``: a TensorFlow checkpoint in, an artifact out."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from porter.architecture.network import Network
from porter.atomic import check_folder, check_output, make_folder, refuse_existing, write_bytes
from porter.errors import MappingError, Option, PorterError
from porter.formats import Checkpoint, open_checkpoint
from porter.formats.locate import locate
from porter.formats.remote import is_url
from porter.formats.v1 import SHARDED
from porter.formats.weights import Weights
from porter.mapping.backbone import as_backbone, by_other_names, find_backbone, hint
from porter.mapping.files import load_mapping, load_variant, mapping_digest
from porter.mapping.identify import match_variants
from porter.mapping.options import ArtifactLayout, PathLike, PortOptions
from porter.mapping.plan import Plan, fit, make_plan
from porter.mapping.schema import VariantMapping

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from porter.artifacts.metadata import Metadata
    from porter.mapping.apply import Ported

DEFAULT = PortOptions()
REMOTE_FILE = re.compile(r"\.(?:index|meta|data-\d{5}-of-\d{5})$")  # of a checkpoint's files behind a URL


class Port(NamedTuple):
    """A checkpoint, the mapping chosen for it, its network (with the checkpoint's own gate) and the plan.

    ``classes`` are the outputs of the checkpoint's classifier, background included; 0 without one.
    """

    checkpoint: Checkpoint
    mapping: VariantMapping
    network: Network
    classes: int
    plan: Plan

    @property
    def target_network(self) -> Network:
        """The network that the ported weights are made for."""
        return replace(self.network, gate=self.plan.gate, bn_folded=self.plan.bn_folded)


def plan_port(checkpoint: PathLike | Checkpoint, options: PortOptions = DEFAULT) -> Port:
    """Open ``checkpoint``, choose its mapping and plan the port, reading no tensor.

    Raises CheckpointError or MappingError.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint, options.weights)
    if options.backbone:
        return plan_opened(opened, choose_backbone(opened, options.variant, options.mapping), options)
    try:
        return plan_opened(opened, choose_mapping(opened, options.variant, options.mapping), options)
    except MappingError:
        best = match_variants(opened)[0]
        whole = best.exact and best.classes  # a classifier; what is wrong with it, the error tells
        unasked = options.mapping is None and options.variant is None
        if unasked and not whole and (refusal := hint(opened)):
            raise refusal from None
        raise


def plan_opened(opened: Checkpoint, mapping: VariantMapping, options: PortOptions = DEFAULT) -> Port:
    """Plan the port of ``opened`` by ``mapping``. Raises MappingError."""
    fitted = fit(mapping, opened)
    return Port(opened, mapping, fitted.network, fitted.classes, make_plan(mapping, fitted, opened, options))


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
    force: bool = False,
) -> tuple[Path, Port]:
    """Port a TensorFlow checkpoint and write an artifact.

    Args:
        checkpoint: What ``open_checkpoint`` takes.
        output: A ``.pth``, ``.safetensors``, ``.onnx`` or ``.tflite``; ``<variant>.pth`` when left out.
        variant: Found from the shapes when left out.
        mapping: A mapping file of your own.
        weights: ``ema`` or ``raw`` where both exist; ``auto`` prefers the averages.
        layout: ``timm`` makes the weights exact where the squeeze-excite gate is 1/6, ``slim`` leaves them untouched.
        keep_background: Keep class 0 of slim's 1,001.
        num_classes: Refuse a classifier of another size.
        fold_bn: Fold batch norms into the convolutions before them.
        fake_quant: False makes a float network of a source that was trained for 8 bits.
        backbone: Take the network that is inside a larger model: of a segmenter, a detector, a model of your own.
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
        _check_suffix(Path(output))
    options = PortOptions(
        variant, mapping, weights, layout, keep_background, num_classes, fold_bn, fake_quant, backbone
    )
    port = plan_port(checkpoint, options)
    path = Path(output if output is not None else f"{port.mapping.variant}.pth")
    if path.suffix == ".tflite" and port.plan.ranges:  # integers are the source's own weights
        port = plan_opened(port.checkpoint, port.mapping, replace(options, layout="slim"))
    refuse_existing(path, force)
    _save(path, port, *carry_out_arrays(port), force)
    return path, port


def _check_suffix(path: Path) -> None:
    from porter.artifacts.locate import SUFFIXES
    from porter.exports import files

    suffixes = (*SUFFIXES, *files.SUFFIXES)
    if path.suffix not in suffixes:
        raise PorterError(f"{path}: the output's name must end in one of {', '.join(suffixes)}")


def _save(path: Path, port: Port, arrays: dict[str, np.ndarray], metadata: Metadata, force: bool) -> None:
    """Write a port. Only a ``.pth`` or ``.pt`` needs torch, whose import takes longer than everything else."""
    if path.suffix == ".safetensors":
        from porter.artifacts.arrays import save_arrays

        save_arrays(path, arrays, metadata, force)
        return
    from porter.exports.files import SUFFIXES, export_bytes

    if path.suffix in SUFFIXES:
        data = export_bytes(path.suffix, port.target_network, arrays, metadata, port.mapping.input.size)
        write_bytes(path, data, force)
        return
    import torch

    from porter.artifacts.files import save_artifact

    save_artifact(path, {name: torch.from_numpy(values) for name, values in arrays.items()}, metadata, force)


def convert_all(
    checkpoints: Sequence[str],
    folder: Path,
    options: PortOptions = DEFAULT,
    *,
    suffix: str = ".pth",
    force: bool = False,
) -> Iterator[tuple[Path, Port]]:
    """Port several checkpoints, of one training run say, into ``folder`` as ``<name of the checkpoint><suffix>``.

    Results as for ``convert``; the variant is found once, and each is read while the one before
    it is written. Raises PorterError before the first where an output exists or a name is no checkpoint's, and at the
    first that cannot be ported; those before it stay.
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

    def read(checkpoint: str) -> tuple[Port, dict[str, np.ndarray], Metadata]:
        port = plan_port(checkpoint, options)
        return port, *carry_out_arrays(port)

    with ThreadPoolExecutor(1) as reader:
        ready = read(checkpoints[0])
        if options.mapping is None:
            options = replace(options, variant=ready[0].mapping.variant)
        for name, following in zip_longest(names, checkpoints[1:]):
            ahead = reader.submit(read, following) if following else None
            port, arrays, metadata = ready
            make_folder(folder)
            _save(folder / name, port, arrays, metadata, force)
            yield folder / name, port
            if ahead:
                ready = ahead.result()


def one_each(checkpoints: Sequence[str], weights: Weights = "auto") -> dict[str, str]:
    """The checkpoints that ``checkpoints`` name, each once and in the order of first mention -> a name for the output.

    A shell makes of ``run/model-*`` every file of each of them. Raises CheckpointError where a name is no checkpoint's.
    """
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for given in checkpoints:
        if is_url(given):
            prefix = REMOTE_FILE.sub("", given)
            # Of a .meta alone, the graph in it may be what is wanted
            opened = given if given.endswith(".meta") and not {prefix, f"{prefix}.index"} & {*checkpoints} else prefix
            found.setdefault(("", opened), (opened, Path(opened).name))
            continue
        source = locate(Path(given), weights)
        opened = given
        if source.path.parent == Path(given).parent:  # a file of it; else a folder, after which the output is named
            opened = str(source.path)
        stem = Path(opened).name
        if sharded := SHARDED.fullmatch(stem):
            stem = sharded[1]
        found.setdefault((source.kind, os.path.realpath(source.path)), (opened, stem))
    return dict(found.values())


def carry_out_arrays(port: Port) -> tuple[dict[str, np.ndarray], Metadata]:
    """Read and port the weights: a state dict as arrays, and its metadata. Raises CheckpointError or MappingError."""
    from porter.mapping.apply import carry_out

    ported = carry_out(port.plan, port.checkpoint)
    return ported.tensors, _describe(port, ported)


def carry_out_port(port: Port) -> tuple[dict[str, Tensor], Metadata]:
    """The same as tensors."""
    import torch

    arrays, metadata = carry_out_arrays(port)
    return {name: torch.from_numpy(values) for name, values in arrays.items()}, metadata


def _describe(port: Port, ported: Ported) -> Metadata:
    from porter.artifacts.metadata import Metadata

    plan = port.plan
    return Metadata(
        tool=f"mnv3-port {_version()}",
        variant=plan.variant,
        layout=plan.layout,
        gate=plan.gate,
        source_gate=plan.source_gate,
        num_classes=plan.num_classes,
        background_dropped=plan.background_dropped,
        weights=port.checkpoint.weights,
        step=port.checkpoint.step,
        sources=port.checkpoint.digests(),
        mapping=mapping_digest(port.mapping),
        fold_nudges=ported.fold_nudges,
        bn_folded=plan.bn_folded,
        ranges=ported.ranges,
        segmentation=port.network.segmentation,
    )


@cache
def _version() -> str:
    from importlib.metadata import version

    return version("mnv3-port")


def choose_backbone(checkpoint: Checkpoint, variant: str | None, mapping: PathLike | None) -> VariantMapping:
    """The mapping of the backbone inside ``checkpoint``. Raises MappingError where there is none."""
    if mapping is not None:
        return as_backbone(choose_mapping(checkpoint, variant, mapping))
    variants = None if variant is None else [load_variant(variant).variant]
    found = find_backbone(checkpoint, variants)
    if found.exact:
        return found.mapping
    other = by_other_names(checkpoint, variants)
    if other is not None:
        return other
    raise MappingError(
        f"{checkpoint.given}: no backbone of ours in it; closest is {found.mapping.variant} with {found.fitting} of "
        f"{found.expected} variables. `mnv3-port draft` proposes names where it has others"
    )


def choose_mapping(checkpoint: Checkpoint, variant: str | None, mapping: PathLike | None) -> VariantMapping:
    """The mapping to use: the user's file, else the named variant's, else that of the variant found.

    Raises MappingError when the named variant is wrong and another one fits, or when none fits.
    """
    if mapping is not None:
        chosen = load_mapping(Path(mapping))
        if variant is not None and variant != chosen.variant:
            raise MappingError(f"{mapping}: is a mapping of {chosen.variant}, not of {variant}")
        return chosen
    if variant is not None:
        named = match_variants(checkpoint, [load_variant(variant).variant])[0]
        if named.exact:
            return load_variant(variant, named.names)
    best = match_variants(checkpoint)[0]
    if variant is None:
        if not best.exact:
            raise MappingError(
                f"{checkpoint.given}: no variant fits; closest is {best.variant} with {best.fitting} of "
                f"{best.expected} variables. A mapping file of your own may fit; to list the differences use",
                option=Option("variant", best.variant),
            )
        return load_variant(best.variant, best.names)
    if best.exact:
        raise MappingError(
            f"{checkpoint.given}: is a {best.variant} checkpoint, not {variant}; use",
            option=Option("variant", best.variant),
        )
    return load_variant(variant, named.names)
