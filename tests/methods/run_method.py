"""Running a method on tensors in memory, through its card and in blocks as small as one likes."""

import numpy as np
import torch

from paramdelta_dist.kernels.blocks import TensorInfo
from paramdelta_dist.kernels.blockwise import BlockRunner
from paramdelta_dist.methods import find_method

CPU = torch.device("cpu")


def run(name, base, terms, parameters=None, values=None, *, block=1 << 18, tensor="w", numbers=None):
    """The result for one tensor. `terms` are (post, base) pairs, base None where models are merged as they are; `base` None then too.
    `parameters` are the recipe's, `values` each term's own."""
    method, parameters = find_method(name), parameters or {}
    known = {parameter.name: parameters.get(parameter.name, parameter.default) for parameter in method.parameters}
    own = [
        {p.name: (values[i] if values else {}).get(p.name, parameters.get(p.name, p.default)) for p in method.for_each}
        for i in range(len(terms))
    ]
    tensors = [(torch.as_tensor(post), None if old is None else torch.as_tensor(old)) for post, old in terms]
    like = tensors[0][0]
    shape, n = tuple(like.shape), like.numel()
    receiving = None if base is None else torch.as_tensor(base).reshape(-1)
    runner = BlockRunner(method.scratch_blocks, CPU, wide=method.compute_float64)
    columns = shape[-1] if shape and method.blocks.name == "ROWS" else 1
    step = max(1, block // columns) * columns

    def blocks():
        for first in range(0, n, step):
            run = slice(first, min(first + step, n))
            pairs = [(post.reshape(-1)[run], None if old is None else old.reshape(-1)[run]) for post, old in tensors]
            yield run, None if receiving is None else receiving[run], pairs

    statistics = ()

    def info():
        return TensorInfo(tensor, shape, known, tuple(own), tuple(numbers or range(len(terms))), statistics)

    for reduction in method.reductions(known, own):
        total = None
        for run, receiver, pairs in blocks():
            partial = runner.collect(reduction.map, info(), run.start, like.dtype, receiver, pairs)
            total = partial if total is None else reduction.combine(total, partial)
        statistics += (reduction.finalize(total, info()),)
    out = torch.empty(n, dtype=like.dtype)
    for run, receiver, pairs in blocks():
        runner.apply(method.apply, info(), run.start, out[run], receiver, pairs)
    return out.reshape(shape)


def over(base, posts):
    """Terms whose own base is the one that receives."""
    return [(post, base) for post in posts]


def as_they_are(models):
    return [(model, None) for model in models]


def array(tensor):
    return np.asarray(tensor.double())
