"""Scores as mmsegmentation gives them: of models, of anything that gives logits or masks, and of bundles."""

from twins_trt.evaluation.evaluate import EvalResult, EvaluationOptions, evaluate_logits, evaluate_masks, evaluate_model
from twins_trt.evaluation.metrics import ConfusionMatrix, Scores

__all__ = [
    "ConfusionMatrix",
    "EvalResult",
    "EvaluationOptions",
    "Scores",
    "evaluate_logits",
    "evaluate_masks",
    "evaluate_model",
]
