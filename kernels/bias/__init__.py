"""What follows a convolution: its bias and ReLU, in place, in one kernel."""

from twins_trt.kernels.bias.op import bias_act_
from twins_trt.kernels.bias.reference import bias_act_reference_

__all__ = ["bias_act_", "bias_act_reference_"]
