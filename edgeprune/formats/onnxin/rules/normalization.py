"""Normalisations. A batch norm is PyTorch's own, which takes new statistics when it is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgeprune.formats.onnxin.call import Call, axis_of
from edgeprune.formats.onnxin.registry import rule

_EPSILON = 1e-5
_MOMENTUM = 0.9  # ONNX counts what is kept, PyTorch what is new


@rule("BatchNormalization")
def batch_norm(call: Call) -> Tensor:
    """Batch norm with the statistics of the file."""
    call.refuse_if(bool(call.attribute("training_mode", 0)), "a batch norm in eval mode", "training_mode=1")
    mean, variance = call.tensor(3, "running_mean"), call.tensor(4, "running_var")
    weight, bias = call.weight(1), call.weight(2, "bias")
    momentum = 1 - call.attribute("momentum", _MOMENTUM)
    return F.batch_norm(
        call.tensor(0), mean, variance, weight, bias, False, momentum, call.attribute("epsilon", _EPSILON)
    )


@rule("InstanceNormalization")
def instance_norm(call: Call) -> Tensor:
    """Each channel of each sample by its own statistics."""
    epsilon = call.attribute("epsilon", _EPSILON)
    return F.instance_norm(call.tensor(0), weight=call.weight(1), bias=call.weight(2, "bias"), eps=epsilon)


@rule("LayerNormalization")
def layer_norm(call: Call) -> Tensor:
    """Each place by the statistics of all dims from `axis` on."""
    call.refuse_if(len([name for name in call.node.outputs if name]) > 1, "one output", "its statistics too")
    x, epsilon = call.tensor(0), call.attribute("epsilon", _EPSILON)
    shape = [int(size) for size in x.shape[axis_of(call.attribute("axis", -1), x.dim()) :]]
    weight, bias = call.weight(1), call.optional(2)
    if list(weight.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, weight, bias, epsilon)
    plain = F.layer_norm(x, shape, None, None, epsilon) * weight
    return plain if bias is None else plain + bias


@rule("RMSNormalization")
def rms_norm(call: Call) -> Tensor:
    """Each place by the root of the mean of the squares of all dims from `axis` on."""
    x, epsilon = call.tensor(0), call.attribute("epsilon", _EPSILON)
    shape = [int(size) for size in x.shape[axis_of(call.attribute("axis", -1), x.dim()) :]]
    weight = call.weight(1)
    if list(weight.shape) == shape:
        return F.rms_norm(x, shape, weight, epsilon)
    return F.rms_norm(x, shape, None, epsilon) * weight


@rule("GroupNormalization")
def group_norm(call: Call) -> Tensor:
    """Groups of channels by their own statistics; until opset 20 with a weight for each group."""
    x, n_groups = call.tensor(0), int(call.attribute("num_groups"))
    epsilon = call.attribute("epsilon", _EPSILON)
    each = int(x.shape[1]) // n_groups

    def of_channels(tensor: Tensor) -> Tensor:
        return tensor if tensor.numel() == each * n_groups else tensor.repeat_interleave(each)

    form = "of_channels" if call.opset < 21 else ""
    weight, bias = (call.weight(k, role, form, of_channels) for k, role in ((1, "weight"), (2, "bias")))
    return F.group_norm(x, n_groups, weight, bias, epsilon)


@rule("LRN")
def local_response(call: Call) -> Tensor:
    """Each place by the squares in the channels around it."""
    x, size = call.tensor(0), int(call.attribute("size"))
    alpha, beta, bias = call.attribute("alpha", 1e-4), call.attribute("beta", 0.75), call.attribute("bias", 1.0)
    call.refuse_if(size % 2 == 0, "an odd size, as onnxruntime has them", size)
    return F.local_response_norm(x, size, alpha, beta, bias)


@rule("LpNormalization")
def lp_norm(call: Call) -> Tensor:
    """Each vector along an axis by its length."""
    x, axis = call.tensor(0), call.attribute("axis", -1)
    return x / torch.linalg.vector_norm(x, call.attribute("p", 2), axis, keepdim=True)


@rule("MeanVarianceNormalization")
def mean_variance(call: Call) -> Tensor:
    """By mean and deviation over some axes."""
    x, axes = call.tensor(0), call.attribute("axes", [0, 2, 3])
    centred = x - x.mean(axes, keepdim=True)
    return centred / ((centred * centred).mean(axes, keepdim=True).sqrt() + 1e-9)
