"""Engines of TensorRT and TensorRT-RTX on a GPU: which plan fits, the plan itself, lanes that run it, the engine."""
