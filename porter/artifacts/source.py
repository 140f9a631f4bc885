"""An artifact as a source of another port: the variables that it would be converted from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace as replace_struct

from porter.artifacts.artifact import Artifact, ArtifactFile, checksum, load_artifact
from porter.artifacts.metadata import Metadata
from porter.artifacts.relayout import relayout
from porter.artifacts.variant import check_classifier, class_count, mapping_of, network_as_stored
from porter.errors import ArtifactError
from porter.mapping.axes import to_source
from porter.mapping.files import load_variant
from porter.mapping.options import PortOptions
from porter.mapping.ranges import FIELDS, Range
from porter.mapping.rules import expected_variables, module_outputs
from porter.mapping.schema import Classes, VariantMapping
from porter.network.network import Network, build_network
from porter.network.nodes import is_weight, state_dict_shapes
from porter.sources import Checkpoint, Variable

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class StoredPort(Checkpoint):
    """An artifact's weights under the names and in the layouts of ``mapping``, which is of the network that it states.

    ``origin`` is its metadata, None where another tool wrote it. ``changed``: True if its weights are not, or not
    known to be, those that its sources give. ``restored``: True if the class that was dropped is here.
    """

    mapping: VariantMapping | None = None
    origin: Metadata | None = None
    changed: bool = False
    restored: bool = False

    @property
    def weights(self) -> str:
        """Which weights the artifact's source had, in words."""
        return f"{self.origin.weights}, by {self.origin.tool}" if self.origin else "as stored"

    @property
    def step(self) -> int | None:
        """The training step of the artifact's source."""
        return self.origin.step if self.origin else None


def as_source(file: ArtifactFile, options: PortOptions) -> StoredPort:
    """The artifact ``file`` as a source. Raises ArtifactError, also where its entries are not those of its network.

    Its squeeze-excite gate is the source's where the fold can be undone bit for bit, else the one that it has.
    """
    stored, source = load_artifact(file), file.given
    origin, mapping = stored.metadata, mapping_of(stored.metadata, options, file.mapping, source)
    unchanged = origin is not None and not origin.changed and origin.checksum == checksum(stored.arrays)
    if unchanged:
        stored = relayout(stored, "slim", build_network(mapping))
    network = network_as_stored(build_network(mapping), stored.arrays, origin, stored.gate)
    check_classifier(network, stored.arrays, source)
    mapping = _of_network(mapping, network, stored, own=bool(options.mapping or file.mapping), source=source)
    arrays = with_background(stored, mapping)
    restored = arrays is not stored.arrays
    if not restored:  # it keeps the classes that it has
        mapping = replace_struct(mapping, classes=Classes())
    values = as_variables(arrays, mapping, network, source)
    values |= _ranges(origin.ranges if origin else {}, mapping, network, class_count(arrays), source)
    return StoredPort(
        given=source,
        path=file.path,
        format=file.path.suffix[1:],
        files=[file.path],
        variables={name: _variable(name, one, source) for name, one in values.items()},
        set_aside={},
        averaged=False,
        remote=True,  # TensorFlow cannot open it: a reference gets a copy of the variables
        temporary=file.copy,
        mapping=mapping,
        origin=origin,
        changed=origin is not None and not unchanged,
        restored=restored,
    )


def as_variables(
    arrays: Mapping[str, np.ndarray], mapping: VariantMapping, network: Network, source: str
) -> dict[str, np.ndarray]:
    """The entries of a state dict as variables of ``mapping``. Raises ArtifactError unless they are ``network``'s."""
    if "features.0.0.weight" in arrays:
        raise ArtifactError(
            f"{source}: has torchvision's names, and its MobileNetV3 is another network: it pads both sides alike"
        )
    classes = class_count(arrays)
    expected, shapes = expected_variables(mapping, network, classes), state_dict_shapes(network, classes)
    problems = [
        f"{want.target}: {'missing' if found is None else f'shape {list(found.shape)}'}, expected {list(shape)}"
        for want in expected
        for found, shape in [(arrays.get(want.target), shapes[want.target])]
        if found is None or tuple(found.shape) != shape
    ]
    problems += [f"{name}: the network has no such entry" for name in arrays if is_weight(name) and name not in shapes]
    if problems:
        raise ArtifactError(f"{source}: is no {mapping.variant} state dict ({len(problems)} problems):", problems)
    return {want.source: to_source(want.axes, arrays[want.target]) for want in expected}


def with_background(artifact: Artifact, mapping: VariantMapping, zeros: bool = False) -> dict[str, np.ndarray]:
    """The entries with the class that was dropped, from metadata, or else with ``zeros`` if asked for.

    The entries themselves where no class was dropped.
    """
    import numpy as np

    arrays, metadata, classes = artifact.arrays, artifact.metadata, mapping.classes
    weight, bias = (arrays.get(f"classifier.{part}") for part in ("weight", "bias"))
    if weight is None or bias is None or classes.background is None or len(bias) + 1 != classes.background_of:
        return arrays
    size = weight[0].size + 1
    if metadata and len(metadata.background) == 4 * size:
        row = np.frombuffer(metadata.background, "<f4")
    elif zeros:
        row = np.zeros(size, np.float32)
    else:
        return arrays
    return arrays | {
        "classifier.weight": np.insert(weight, classes.background, row[:-1], axis=0),
        "classifier.bias": np.insert(bias, classes.background, row[-1]),
    }


def _of_network(
    mapping: VariantMapping, network: Network, artifact: Artifact, own: bool, source: str
) -> VariantMapping:
    """``mapping`` changed to what the artifact holds: folded batch norms, its gate, head and parts."""
    metadata = artifact.metadata
    if network.bn_folded and not mapping.bn_folded:
        if own:
            raise ArtifactError(f"{source}: its batch norms are folded away, and those of its mapping file are not")
        mapping = load_variant(mapping.variant, "tflite" if metadata and metadata.ranges else "tfjs")
        mapping = metadata.stated.applied(mapping) if metadata else mapping
    if network.head is not None:
        mapping = replace_struct(mapping, **{network.head.KEY: network.head})
    top = mapping.top
    if not class_count(artifact.arrays):
        pools = metadata is not None and metadata.stated.pooling is not None
        top = "optional" if network.embedding or pools else "none"
    found = replace_struct(mapping, top=top, definition=replace_struct(mapping.definition, gate=network.gate))
    try:
        build_network(found)
    except ValueError as error:
        raise ArtifactError(f"{source}: its metadata states an impossible network: {error}") from error
    return found


def _ranges(
    ranges: Mapping[str, Range], mapping: VariantMapping, network: Network, classes: int, source: str
) -> dict[str, np.ndarray]:
    """The quantisation ranges as variables, which a source has beside the outputs that they are of."""
    import numpy as np

    names = module_outputs(mapping, network, classes)
    if strange := [at for at in ranges if at not in names]:
        raise ArtifactError(f"{source}: ranges of {strange[0]}, which has no name in the mapping of {mapping.variant}")
    return {
        f"{names[at][0]}/{field}": np.array(value, np.float32 if np.float32(value).tolist() == value else np.float64)
        for at, limits in ranges.items()
        for field in FIELDS
        if (value := getattr(limits, field)) is not None
    }


def _variable(name: str, values: np.ndarray, source: str) -> Variable:
    return Variable(name, values.shape, values.dtype.name, name, source, lambda: values)
