"""``release --check``: checking a published folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from porter.artifacts.artifact import CONFIG, MAPPING, PARITY, REFERENCE, WEIGHTS, Artifact, ArtifactFile, load_artifact
from porter.artifacts.inspection import Parity, read_json
from porter.artifacts.variant import mapping_of
from porter.errors import ArtifactError, NoParityError
from porter.mapping.files import load_mapping, mapping_digest
from porter.mapping.options import PortOptions
from porter.models.create import open_model
from porter.network.nodes import check_image
from porter.parity.candidates.own import recorded_artifact
from porter.parity.check import Check, check_sample
from porter.parity.references.recorded import recorded
from porter.parity.verdict import Verdict
from porter.parity.verify import asked, environment, verify
from porter.releases import folder as contents
from porter.releases.card import images
from porter.releases.naming import architecture
from porter.sources.checkpoint import sha256


class _Config(msgspec.Struct, frozen=True, repr_omit_defaults=True):
    """The checked part of ``config.json``."""

    architecture: str
    num_classes: int
    pretrained_cfg: dict[str, Any] | None = None
    images: dict[str, Any] | None = None


def check_release(folder: Path, checkpoint: str | None = None) -> Verdict:
    """Check files against each other, and the weights against the recorded reference, or ``checkpoint`` itself.

    Returns the verdict. Raises PorterError that names every file that is missing, changed or contradicts another, and
    NoParityError if the weights do not compute what TensorFlow computed.
    """
    problems, paths = contents.checksum_problems(folder), list(folder.glob("*.pth"))
    if not problems and len(paths) != 1:
        problems = [f"{len(paths)} .pth files, expected one"]
    own = folder / MAPPING if (folder / MAPPING).is_file() else None
    if not problems:
        file = ArtifactFile(paths[0], str(paths[0]), own)
        problems = _contradictions(folder, file)
    if problems:
        raise ArtifactError(f"{folder}: not as it was published ({len(problems)} problems):", problems)
    verdict = verify(checkpoint, file.path, mapping=own) if checkpoint else _against_recorded(folder, file)
    if failure := verdict.failure():
        raise NoParityError(f"{file.path}: {failure}")
    return verdict


def _contradictions(folder: Path, file: ArtifactFile) -> list[str]:
    path, digest = file.path, file.digests[file.path.name]
    artifact, twin = load_artifact(file), load_artifact(folder / WEIGHTS)
    if artifact.metadata is None:
        return [f"{path.name}: not written by mnv3-port"]
    problems = []
    if not path.stem.endswith(f"-{digest[: contents.HASH_LENGTH]}"):
        problems.append(f"{path.name}: its name does not end in the first {contents.HASH_LENGTH} of its SHA-256")
    problems += _not_twins(path.name, artifact, twin)
    problems += [
        f"{path.name}: {n}: not finite" for n, values in artifact.arrays.items() if not np.isfinite(values).all()
    ]
    config, parity = read_json(folder / CONFIG, _Config), read_json(folder / PARITY, Parity)
    mapping = mapping_of(artifact.metadata, PortOptions(), file.mapping, file.given)
    stated = _Config(config.architecture, config.num_classes)
    expected = _Config(architecture(mapping, artifact.metadata), artifact.metadata.num_classes)
    if stated != expected:
        problems.append(f"{CONFIG}: is of {stated}, the weights are of {expected}")
    known = msgspec.json.decode(msgspec.json.encode(images(mapping, artifact.metadata)))
    for found in (config.pretrained_cfg or {}, config.images or {}):
        problems += [
            f"{CONFIG}: {key}: {found[key]}, the mapping has {known.get(key)}"
            for key in found
            if found[key] != known.get(key)
        ]
    # Its digest; before version 0.3, that of its content
    own = file.mapping
    if own and artifact.metadata.mapping not in (sha256(own), mapping_digest(load_mapping(own))):
        problems.append(f"{MAPPING}: is not the mapping that {path.name} was made by")
    if not parity.passed:
        problems.append(f"{PARITY}: does not report parity")
    if parity.digests.get(path.name) != digest:
        problems.append(f"{PARITY}: is of other weights than {path.name}")
    return problems


def _not_twins(name: str, one: Artifact, other: Artifact) -> list[str]:
    both = f"{name} and {WEIGHTS}"
    if one.arrays.keys() != other.arrays.keys():
        return [f"{both}: other tensors ({sorted(one.arrays.keys() ^ other.arrays.keys())[:3]} ...)"]
    pairs = ((name, values, other.arrays[name]) for name, values in one.arrays.items())
    problems = [f"{both}: {n} differs" for n, a, b in pairs if a.dtype != b.dtype or not np.array_equal(a, b)]
    if other.metadata is None or msgspec.structs.replace(other.metadata, parity={}) != one.metadata:
        problems.append(f"{both}: metadata differs")
    return problems


def _against_recorded(folder: Path, file: ArtifactFile) -> Verdict:
    reference, opened = recorded(folder / REFERENCE), open_model(file)
    network = opened.whole.network
    candidate = recorded_artifact(opened, file)
    verdict = Verdict(
        variant=opened.mapping.variant,
        checkpoint=REFERENCE,
        artifact=file.given,
        reference=reference.name,
        dtype="both",
        environment=environment(reference),
        digests=candidate.digests,
        fake_quant=opened.fake_quant,
        precision=reference.precision,
        rounded_weights=candidate.rounded_weights,
    )
    for sample in reference.samples:
        try:
            count, height, width, _ = sample.images.shape
            check_image(network, height, width, count)
        except ValueError as error:
            raise ArtifactError(f"{folder / REFERENCE}: {error}") from error
    questions = asked("both", candidate, reference)
    check = Check(None, opened.mapping, network, candidate, reference, questions, verdict)
    for sample in reference.samples:
        check_sample(check, sample)
    return verdict
