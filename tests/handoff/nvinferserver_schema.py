"""The messages of Gst-nvinferserver's configuration that hand-offs use, as a protocol buffer's descriptor.

Names and types are those of the tables "Gst-nvinferserver File Configuration Specifications" in the DeepStream
documentation. The text format knows fields by name only, so the numbers here are arbitrary.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

MESSAGES: dict[str, dict[str, str]] = {
    "PluginControl": {
        "infer_config": "InferenceConfig",
        "input_control": "InputControl",
        "output_control": "OutputControl",
    },
    "InferenceConfig": {
        "unique_id": "uint32",
        "gpu_ids": "repeated int32",
        "max_batch_size": "uint32",
        "backend": "BackendParams",
        "preprocess": "PreProcessParams",
        "postprocess": "PostProcessParams",
    },
    "BackendParams": {"triton": "TritonParams", "output_mem_type": "MemoryType"},
    "TritonParams": {"model_name": "string", "version": "int64", "model_repo": "TritonModelRepo"},
    "TritonModelRepo": {"root": "repeated string", "log_level": "uint32", "strict_model_config": "bool"},
    "PreProcessParams": {
        "network_format": "MediaFormat",
        "tensor_order": "TensorOrder",
        "tensor_name": "string",
        "maintain_aspect_ratio": "int32",
        "frame_scaling_filter": "uint32",
        "normalize": "ScaleNormalize",
    },
    "ScaleNormalize": {"scale_factor": "float", "channel_offsets": "repeated float", "mean_file": "string"},
    "PostProcessParams": {"labelfile_path": "string", "other": "OtherNetworkParams"},
    "OtherNetworkParams": {"type_name": "string"},
    "InputControl": {"process_mode": "ProcessMode", "interval": "uint32"},
    "OutputControl": {"output_tensor_meta": "bool"},
}

ENUMS = {
    "MediaFormat": ("MEDIA_FORMAT_NONE", "IMAGE_FORMAT_RGB", "IMAGE_FORMAT_BGR", "IMAGE_FORMAT_GRAY"),
    "TensorOrder": ("TENSOR_ORDER_NONE", "TENSOR_ORDER_LINEAR", "TENSOR_ORDER_NHWC"),
    "MemoryType": ("MEMORY_TYPE_DEFAULT", "MEMORY_TYPE_CPU", "MEMORY_TYPE_GPU"),
    "ProcessMode": ("PROCESS_MODE_DEFAULT", "PROCESS_MODE_FULL_FRAME", "PROCESS_MODE_CLIP_OBJECTS"),
}


def plugin_control() -> Any:
    """An empty PluginControl, the outermost message."""
    file = descriptor_pb2.FileDescriptorProto(name="nvinferserver.proto", package="nvinferserver", syntax="proto3")
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            _add_field(message, field, kind, number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("nvinferserver.PluginControl"))()


def _add_field(message: Any, name: str, kind: str, number: int) -> None:
    Field = descriptor_pb2.FieldDescriptorProto
    *repeated, kind = kind.split()
    label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
    field = message.field.add(name=name, number=number, label=label)
    if kind in MESSAGES or kind in ENUMS:
        field.type = Field.TYPE_MESSAGE if kind in MESSAGES else Field.TYPE_ENUM
        field.type_name = f".nvinferserver.{kind}"
    else:
        field.type = getattr(Field, f"TYPE_{kind.upper()}")
