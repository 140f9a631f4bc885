"""Names of the variables in an object-based checkpoint (TensorFlow 2's ``tf.train.Checkpoint``, SavedModel).

Such a checkpoint stores a variable under the path of attributes that leads to it. Its object graph
(tensorflow/core/protobuf/trackable_object_graph.proto) holds the names that the variables were created with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from porter.sources import protos
from porter.sources.variable import Variable
from porter.sources.weights import AVERAGE_SUFFIX

OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
# TF Model Garden's blocks keep layers in private attributes; the layers' names count all blocks made by a process
PRIVATE = re.compile(r"/_(conv|norm|squeeze_excitation)")
# Keras 3's optimizers list the model's own variables, and a checkpoint may name those by this way alone
OWN = re.compile(r"(^|/)optimizer/_trainable_variables/\d+$")
LISTED_AGAIN = "_all_variables"
OBJECT_GRAPH = "object graph"
VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
STEPS = f"optimizer/_iterations{VALUE_SUFFIX}"


class Resolved(NamedTuple):
    """Variables by resolved name, and keys set aside with the reason. ``names``: key -> resolved name."""

    variables: dict[str, Variable]
    set_aside: dict[str, str]
    names: Mapping[str, str] = {}


def resolve_names(variables: Mapping[str, Variable], serialized: bytes, file: str) -> Resolved:
    """Name each variable as it was created, if that name is unique, else by its path of attributes.

    Averages that an optimizer of Keras keeps are named like slim's. Other optimizer state, the save counter and the
    graph itself are set aside. Raises CheckpointError if the graph is damaged.
    """
    graph = protos.parse(protos.TrackableObjectGraph, serialized, file, f"its {OBJECT_GRAPH_KEY}")
    full_names = {
        attribute.checkpoint_key.decode(errors="replace"): attribute.full_name.decode(errors="replace")
        for node in graph.nodes
        for attribute in node.attributes
    }
    slots = {slot.slot_variable_node_id for node in graph.nodes for slot in node.slot_variables}
    slot_keys = {
        attribute.checkpoint_key.decode(errors="replace")
        for number in slots
        if 0 <= number < len(graph.nodes)
        for attribute in graph.nodes[number].attributes
    }
    # Keras 3 exports each variable twice, in `variables` and in `_all_variables`
    listed = {name for key, name in full_names.items() if key.split("/")[0] != LISTED_AGAIN}
    twice = {k for k, name in full_names.items() if k.split("/")[0] == LISTED_AGAIN and name in listed}
    counts = Counter(name for key, name in full_names.items() if key not in twice)
    of_average = {f"{name.replace('/', '_')}_average": name for name, count in counts.items() if count == 1}
    owners = {
        key: of_average.get(full_names.get(key, "").rpartition("/")[2])
        for key in variables
        if "optimizer" in key.split("/")
    }
    if any(owners.values()) and any(key.endswith(STEPS) and not variables[key].read().any() for key in owners):
        owners = {}  # before the first step, averages are zeros
    resolved: dict[str, Variable] = {}
    set_aside: dict[str, str] = {}
    for key, variable in variables.items():
        path = key.removesuffix(VALUE_SUFFIX)
        if key == OBJECT_GRAPH_KEY:
            set_aside[key] = OBJECT_GRAPH
        elif own := owners.get(key):
            resolved[own + AVERAGE_SUFFIX] = msgspec.structs.replace(variable, name=own + AVERAGE_SUFFIX)
        elif key in slot_keys or ("optimizer" in path.split("/") and not OWN.search(path)):
            set_aside[key] = "optimizer state"
        elif key in twice:
            set_aside[key] = "listed twice"
        elif full_names.get(key, path).endswith("seed_generator_state"):
            set_aside[key] = "state of a random generator"
        elif path == "save_counter":
            set_aside[key] = "save counter"
        else:
            full_name = full_names.get(key, "")
            own = counts[full_name] == 1 and full_name and not PRIVATE.search(path)
            name = full_name if own else path
            resolved[name] = msgspec.structs.replace(variable, name=name)
    names = {variable.stored_as: name for name, variable in resolved.items()}
    return Resolved(resolved, set_aside, {key: full_names[key] for key in twice} | names)
