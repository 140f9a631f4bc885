"""The protocol-buffer messages of TensorFlow's files, as far as this project reads or writes them.

Field numbers follow tensorflow/core/protobuf/{tensor_bundle,trackable_object_graph,meta_graph,saver,saved_model}.proto,
tensorflow/core/util/saved_tensor_slice.proto and
tensorflow/core/framework/{tensor_shape,tensor_slice,tensor,graph,node_def,attr_value,function,op_def,versions}.proto.

The classes have a descriptor pool of their own, so they do not clash with an imported TensorFlow. Names in a graph are
declared as bytes (the wire format is the same), so that damaged ones can be parsed. An entry's TensorShapeProto is
bytes too: 10^5 entries have few shapes, and each is parsed once.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from porter.errors import CheckpointError

_SCHEMA = """
message VersionDef { int32 producer = 1; int32 min_consumer = 2; }
message BundleHeaderProto { int32 num_shards = 1; int32 endianness = 2; VersionDef version = 3; }
message BundleEntryProto {
  int32 dtype = 1; bytes shape = 2; int32 shard_id = 3; int64 offset = 4; int64 size = 5;
  fixed32 crc32c = 6; repeated TensorSliceProto slices = 7;
}
message TensorShapeProto { repeated Dim dim = 2; bool unknown_rank = 3; }
message Dim { int64 size = 1; }
message TensorSliceProto { repeated Extent extent = 1; }
message Extent { int64 start = 1; int64 length = 2; }

message GraphDef { repeated NodeDef node = 1; FunctionDefLibrary library = 2; }
message NodeDef { bytes name = 1; bytes op = 2; repeated bytes input = 3; repeated Attr attr = 5; }
message Attr { bytes key = 1; AttrValue value = 2; }
message AttrValue {
  ListValue list = 1; bytes s = 2; float f = 4; bool b = 5; int32 type = 6; TensorShapeProto shape = 7;
  TensorProto tensor = 8; NameAttrList func = 10;
}
message ListValue { repeated bytes s = 2; repeated int64 i = 3; }
message NameAttrList { bytes name = 1; }
message FunctionDefLibrary { repeated FunctionDef function = 1; }
message FunctionDef { OpDef signature = 1; repeated NodeDef node_def = 3; repeated Named ret = 4; }
message OpDef { bytes name = 1; repeated ArgDef input_arg = 2; repeated ArgDef output_arg = 3; }
message ArgDef { bytes name = 1; }
message Named { bytes key = 1; bytes value = 2; }
message SavedModel { repeated MetaGraphDef meta_graphs = 2; }
message MetaGraphDef {
  MetaInfoDef meta_info_def = 1; GraphDef graph_def = 2; SaverDef saver_def = 3;
  repeated NamedSignature signature_def = 5;
}
message MetaInfoDef { repeated bytes tags = 4; }
message SaverDef { bytes restore_op_name = 3; }
message NamedSignature { bytes key = 1; SignatureDef value = 2; }
message SignatureDef { repeated NamedTensor outputs = 2; }
message NamedTensor { bytes key = 1; TensorInfo value = 2; }
message TensorInfo { bytes name = 1; }
message TensorProto {
  int32 dtype = 1; TensorShapeProto tensor_shape = 2; bytes tensor_content = 4;
  repeated float float_val = 5; repeated double double_val = 6; repeated int32 int_val = 7;
  repeated bytes string_val = 8;
  repeated int64 int64_val = 10; repeated bool bool_val = 11; repeated int32 half_val = 13;
  repeated float scomplex_val = 9; repeated double dcomplex_val = 12;
}

message SavedTensorSlices { SavedTensorSliceMeta meta = 1; SavedSlice data = 2; }
message SavedTensorSliceMeta { repeated SavedSliceMeta tensor = 1; VersionDef versions = 2; }
message SavedSliceMeta {
  bytes name = 1; TensorShapeProto shape = 2; int32 type = 3; repeated TensorSliceProto slice = 4;
}
message SavedSlice { bytes name = 1; TensorSliceProto slice = 2; TensorProto data = 3; }

message TrackableObjectGraph { repeated TrackableObject nodes = 1; }
message TrackableObject { repeated SerializedTensor attributes = 2; repeated SlotVariable slot_variables = 3; }
message SerializedTensor { bytes name = 1; bytes full_name = 2; bytes checkpoint_key = 3; }
message SlotVariable { int32 original_variable_node_id = 1; bytes slot_name = 2; int32 slot_variable_node_id = 3; }

message CheckpointState { string model_checkpoint_path = 1; repeated string all_model_checkpoint_paths = 2; }
"""

_Field = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "mnv3_port"


def _build_pool() -> descriptor_pool.DescriptorPool:
    # proto2, so that HasField tells an absent scalar from a zero (TensorSliceProto needs it).
    file = descriptor_pb2.FileDescriptorProto(name="mnv3_port.proto", package=_PACKAGE, syntax="proto2")
    for message_name, body in re.findall(r"message (\w+) \{(.*?)\}", _SCHEMA, re.DOTALL):
        descriptor = file.message_type.add(name=message_name)
        for repeated, kind, name, number in re.findall(r"(repeated )?(\w+) (\w+) = (\d+);", body):
            field = descriptor.field.add(name=name, number=int(number))
            field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            scalar = f"TYPE_{kind.upper()}"
            if scalar in _Field.Type.keys():  # noqa: SIM118 - EnumTypeWrapper is no mapping
                field.type = _Field.Type.Value(scalar)
            else:
                field.type, field.type_name = _Field.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _build_pool()


def _class(name: str) -> Any:
    """The class of the message ``name``, e.g. ``GraphDef``."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


BundleHeaderProto = _class("BundleHeaderProto")
BundleEntryProto = _class("BundleEntryProto")
TensorShapeProto = _class("TensorShapeProto")
GraphDef = _class("GraphDef")
AttrValue = _class("AttrValue")
MetaGraphDef = _class("MetaGraphDef")
SavedModel = _class("SavedModel")
SavedTensorSlices = _class("SavedTensorSlices")
TrackableObjectGraph = _class("TrackableObjectGraph")
CheckpointState = _class("CheckpointState")


def parse(cls: Any, data: bytes | memoryview, file: object, what: str) -> Any:
    """Parse ``data`` as a ``cls``. Raises CheckpointError that names ``file`` and ``what`` it should be."""
    try:
        return cls.FromString(data)
    except message.DecodeError as error:
        raise CheckpointError(f"{file}: {what} is damaged ({error}); fetch the file again") from error


def shape_of(proto: Any) -> tuple[int, ...]:
    """The dimensions of a TensorShapeProto."""
    return tuple(dim.size for dim in proto.dim)
