"""Scoring models and engines as mmsegmentation does: its test pipeline, inference modes and metrics."""

from twins_trt.data.preprocessing import fitted_size, input_size
from twins_trt.evaluation.evaluate import EvalResult, Walk, evaluate_logits, evaluate_masks, evaluate_model
from twins_trt.evaluation.inference import INFERENCE_MODES, InferenceMode, inference_mode, predict_mask
from twins_trt.evaluation.metrics import ConfusionMatrix, Scores
from twins_trt.evaluation.pipeline import normalise, prepare, resize_image

__all__ = [
    "INFERENCE_MODES",
    "ConfusionMatrix",
    "EvalResult",
    "InferenceMode",
    "Scores",
    "Walk",
    "evaluate_logits",
    "evaluate_masks",
    "evaluate_model",
    "fitted_size",
    "inference_mode",
    "input_size",
    "normalise",
    "predict_mask",
    "prepare",
    "resize_image",
]
