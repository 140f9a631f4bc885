"""Reading a Keras HDF5 file in a process of its own.

libhdf5 is C that can hang or crash on damaged files. So ``python -m porter.sources.hdf5 FILE FOLDER`` copies the
weights in FILE to FOLDER, as ``listing.json`` and ``values``, under limits of time and memory; porter.sources.keras
runs it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from porter.errors import CheckpointError
from porter.sources.bounds import allowance, check_shape, limit_memory
from porter.sources.keras_config import MAX_CONFIG, averages

MOST_GROUPS = 1 << 14
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # groups that have no names
# saving_lib numbers a layer's variables: their names by the layer's class, in the order of the numbers
_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "normalization": ("mean", "variance", "count"),
}


def dump(path: Path, folder: Path, layer_names: dict[str, list[str]], averaging: bool) -> None:
    """Copy the weights of ``path`` to ``folder``, and the configuration if it has one.

    ``layer_names`` are keras_config.weight_paths of the configuration in a ``.keras``. Of an optimizer that is
    ``averaging`` weights, as this or the file itself says, what it keeps is copied, too, but for its counters.
    """
    with h5py.File(path, "r") as file:
        legacy = file.get("model_weights", file)
        if "layer_names" in legacy.attrs or "layer_names0" in legacy.attrs:
            found = list(_legacy_datasets(legacy))
        else:
            found = list(_datasets(file, layer_names))
        averaging = averaging or averages(_json(file, "training_config", path), "optimizer_config")
        variables: dict[str, dict[str, Any]] = {}
        with (folder / "values").open("wb") as values:
            for name, dataset in found:
                unique = dataset.name.strip("/") if name in variables else name
                variables[unique] = _copied(dataset, values, path)
            kept = [_copied(dataset, values, path) for dataset in _kept(file) if dataset.shape] if averaging else []
        optimizer = [group for group in ("optimizer", "optimizer_weights") if group in file]
        config = _json(file, "model_config", path)
        groups = _group_names(file)
    listing = {"variables": variables, "kept": kept, "optimizer": optimizer, "config": config, "groups": groups}
    (folder / "listing.json").write_text(json.dumps(listing))


def _copied(dataset: h5py.Dataset, values: BinaryIO, path: Path) -> dict[str, Any]:
    """Append a dataset to ``values``: its shape and dtype, its name in the file, and where it starts."""
    _check(dataset, path, start := values.tell())
    array = dataset[()]
    if array.dtype.kind == "V":  # bfloat16, the upper half of a float32
        array = (array.view("<u2").astype("<u4") << 16).view("<f4")
    plain = array.astype(array.dtype.newbyteorder("<"), copy=False)
    values.write(plain.tobytes())
    stored_as = dataset.name.strip("/")
    return {"shape": list(plain.shape), "dtype": plain.dtype.name, "stored_as": stored_as, "start": start}


def _json(file: h5py.File, name: str, path: Path) -> Any:
    """A configuration of a whole model; None where there is none."""
    text = file.attrs.get(name)
    if text is None:
        return None
    if len(text) > MAX_CONFIG:
        raise CheckpointError(f"{path}: a configuration of {len(text):,} bytes; larger than any MobileNetV3's")
    return json.loads(text)


def _check(dataset: h5py.Dataset, path: Path, before: int) -> None:
    """Refuse values that are not numbers, or exceed the file's size (``before``: bytes read so far)."""
    stored, shape = dataset.name.strip("/"), dataset.shape or ()
    bfloat16 = dataset.dtype.kind == "V" and dataset.dtype.itemsize == 2 and dataset.dtype.fields is None
    if not (dataset.dtype.kind in "fiu" or bfloat16) or dataset.external or dataset.is_virtual:
        raise CheckpointError(
            f"{path}: tensor {stored}: {dataset.dtype} values, or values outside the file; only plain numbers are read"
        )
    check_shape(shape, f"{path}: tensor {stored}")
    if before + math.prod(shape) * dataset.dtype.itemsize * (1 + bfloat16) > allowance(path.stat().st_size):
        raise CheckpointError(
            f"{path}: tensor {stored}: shape {shape} in a file of {path.stat().st_size} bytes; the file is damaged"
        )


def _legacy_datasets(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    for layer in _strings(group, "layer_names"):
        below = _hard(group, layer)
        weights = _strings(below, "weight_names")
        plain = [weight.split(":")[0] for weight in weights]
        parts = [name.rpartition("/")[2] for name in plain]
        model = len(set(parts)) < len(parts)  # the weights of several layers
        for weight, name, part in zip(weights, plain, parts, strict=True):
            yield f"{layer}/{name.removeprefix(f'{layer}/') if model else part}", _hard(below, weight)


def _strings(group: h5py.Group, name: str) -> list[str]:
    """An attribute of strings. Keras splits a long one (``name0``, ``name1`` ...)."""
    numbered = itertools.takewhile(lambda part: part in group.attrs, (f"{name}{i}" for i in itertools.count()))
    parts = [name] if name in group.attrs else list(numbered)
    texts = [text for part in parts for text in group.attrs[part]]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _datasets(file: h5py.File, layer_names: dict[str, list[str]]) -> Iterator[tuple[str, h5py.Dataset]]:
    """The datasets of a ``.weights.h5``: ``.../layers/<counted class>/vars/<number>``, without optimizer state."""

    def walk(group: h5py.Group, depth: int = 0) -> Iterator[h5py.Dataset]:
        for key in group:
            below = _hard(group, key)
            if isinstance(below, h5py.Dataset):
                yield below
            elif depth < 16 and (depth or key != "optimizer"):
                yield from walk(below, depth + 1)

    for dataset in walk(file):
        parts = dataset.name.strip("/").split("/")
        if len(parts) < 3 or parts[-2] != "vars":
            continue
        counted = parts[-3] if re.search(r"_\d+$", parts[-3]) else f"{parts[-3]}_0"
        given = dataset.parent.attrs.get("name")  # Keras 3; earlier names are in the configuration
        named, *told = layer_names.get("/".join(parts[:-2]), [""])
        known = told or _VARIABLES.get(counted.rpartition("_")[0], ())
        number = int(parts[-1]) if parts[-1].isdecimal() else -1
        variable = known[number] if 0 <= number < len(known) else parts[-1]
        if given is None and counted.startswith("depthwise_conv2d") and variable == "kernel":
            variable = "depthwise_kernel"  # Keras 2's name for it
        yield f"{named or _in_models(parts[:-3], given or counted)}/{variable}", dataset


def _kept(file: h5py.File) -> list[h5py.Dataset]:
    """What the optimizer keeps, in its order, from its count of steps on; nothing where that is 0."""
    if "optimizer_weights" in file:
        group = _hard(file, "optimizer_weights")
        names = _strings(group, "weight_names")
    else:
        group = _hard(file, "optimizer/vars") if "optimizer/vars" in file else ()
        names = [str(number) for number in range(len(group))]
    kept = [_hard(group, name) for name in names]
    return kept if kept and kept[0].shape == () and kept[0][()] > 0 else []


def _in_models(groups: list[str], name: str) -> str:
    """``name`` of a layer below the names of the models that it is in."""
    return "/".join([*(group for group in groups if group not in CONTAINERS), name])


def _group_names(file: h5py.File) -> dict[str, list[str]]:
    """Groups of layers that have names -> the layer's; where a shard ends, its values are in the next."""
    found: dict[str, list[str]] = {}

    def note(path: str, item: Any) -> None:
        parts = path.split("/")
        if len(found) < MOST_GROUPS and isinstance(item, h5py.Group) and parts[-1] == "vars" and "name" in item.attrs:
            found["/".join(parts[:-1])] = [_in_models(parts[:-2], str(item.attrs["name"]))]

    file.visititems(note)
    return found


def _hard(group: h5py.Group, name: str) -> Any:
    """The object ``name`` in ``group``; links to elsewhere are not followed."""
    at = group
    for part in name.split("/"):
        if not isinstance(at.get(part, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{group.file.filename}: {at.name}/{part}: missing, or a link to elsewhere")
        at = at[part]
    return at


def main() -> None:
    """What ``python -m`` runs: exit code 2 and one line if the file is damaged."""
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    given = json.loads(sys.stdin.read())
    limit_memory(allowance(path.stat().st_size))
    try:
        dump(path, folder, given["names"], given["averaging"])
        return
    except CheckpointError as error:
        line = str(error)
    except Exception as error:  # h5py raises anything for damaged bytes
        line = f"{path}: not a readable Keras file ({' '.join(str(error).split())})"
    print(line, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
