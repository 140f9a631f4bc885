"""The structures that a hostile trial found, small and built in memory: for tests/hostile and as seeds for fuzzing."""

from __future__ import annotations

import flatbuffers

from porter.sources import protos
from porter.sources.sstable import masked_crc32c
from porter.sources.sstable_writer import table_bytes

MEGABYTE = 1 << 20


def tensor_proto(shape, **fields):
    proto = protos.GraphDef().node.add().attr.add().value.tensor
    proto.dtype = 1
    for side in shape:
        proto.tensor_shape.dim.add(size=side)
    for name, values in fields.items():
        getattr(proto, name).extend(values)
    return proto


def graph(shape, **fields):
    """A frozen graph of one convolution, whose kernel has ``shape`` and the values in ``fields``."""
    definition = protos.GraphDef()
    constant = definition.node.add(name=b"w", op=b"Const")
    constant.attr.add(key=b"value").value.tensor.CopyFrom(tensor_proto(shape, **fields))
    definition.node.add(name=b"c", op=b"Conv2D", input=[b"x", b"w"])
    return definition.SerializeToString()


def calls(functions):
    """A SavedModel whose functions each call the next twice, and the last the first."""
    model = protos.SavedModel()
    meta = model.meta_graphs.add()

    def call(nodes, name, number, given):
        made = nodes.add(name=name, op=b"PartitionedCall", input=[given])
        made.attr.add(key=b"f").value.func.name = b"f%d" % (number % functions)

    meta.graph_def.node.add(name=b"x", op=b"Placeholder")
    call(meta.graph_def.node, b"y", 0, b"x")
    for number in range(functions):
        function = meta.graph_def.library.function.add()
        function.signature.name = b"f%d" % number
        function.signature.input_arg.add(name=b"x")
        function.signature.output_arg.add(name=b"z")
        call(function.node_def, b"a", number + 1, b"x")
        call(function.node_def, b"b", number + 1, b"a:output:0")
        function.ret.add(key=b"z", value=b"b:output:0")
    signature = meta.signature_def.add(key=b"serving_default").value
    signature.outputs.add(key=b"y").value.name = b"y:0"
    return model.SerializeToString()


def index_bytes(entries, make=table_bytes):
    """The index of a bundle with these ``entries`` (key -> BundleEntryProto) and one shard."""
    header = protos.BundleHeaderProto(num_shards=1)
    header.version.producer = 1
    return make([(b"", header.SerializeToString()), *sorted(entries.items())])


def shared_prefix_table(entries):
    """One block of ``entries``, whose keys share their first megabyte, and its index."""

    def varint(number):
        out = bytearray()
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        return bytes([*out, number])

    def block(pairs):
        data, previous = bytearray(), b""
        for key, value in pairs:
            shared = MEGABYTE if previous[:MEGABYTE] == key[:MEGABYTE] and len(key) > MEGABYTE else 0
            rest = key[shared:]
            data += varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value
            previous = key
        return bytes(data) + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")

    out = bytearray()

    def add(content):
        handle = varint(len(out)) + varint(len(content))
        out.extend(content + b"\0" + masked_crc32c(content + b"\0").to_bytes(4, "little"))
        return handle

    data, meta = add(block(entries)), add(block([]))
    index = add(block([(entries[-1][0], data)]))
    out.extend((meta + index).ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little"))
    return bytes(out)


def tflite(tensors=2, operators=1, shared=0):
    """A ``.tflite`` of so many one-valued tensors and convolutions; all operators have one list of ``shared`` inputs.

    Positions of fields: tensorflow/compiler/mlir/lite/schema/schema.fbs.
    """
    build = flatbuffers.Builder(1 << 16)

    def table(*fields):
        build.StartObject(6)
        for position, offset in fields:
            build.PrependUOffsetTRelativeSlot(position, offset, 0)
        return build.EndObject()

    def vector(offsets):
        build.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            build.PrependUOffsetTRelative(offset)
        return build.EndVector()

    def numbers(values):
        build.StartVector(4, len(values), 4)
        for value in reversed(values):
            build.PrependInt32(value)
        return build.EndVector()

    name, one = build.CreateString("t"), numbers([1])
    inputs = numbers([0] * shared or [0, 1])
    some = vector([table((0, one), (3, name)) for _ in range(tensors)])
    nodes = []
    for number in range(operators):
        outputs = numbers([number % tensors])
        nodes.append(table((1, inputs), (2, outputs)))
    every = vector(nodes)
    subgraph = table((0, some), (1, one), (2, one), (3, every))
    build.StartObject(4)
    build.PrependInt8Slot(0, 3, 0)  # CONV_2D
    code = build.EndObject()
    buffer = table()
    codes, subgraphs, buffers = vector([code]), vector([subgraph]), vector([buffer])
    build.StartObject(5)
    build.PrependUint32Slot(0, 3, 0)
    for position, offset in ((1, codes), (2, subgraphs), (4, buffers)):
        build.PrependUOffsetTRelativeSlot(position, offset, 0)
    build.Finish(build.EndObject(), file_identifier=b"TFL3")
    return bytes(build.Output())
