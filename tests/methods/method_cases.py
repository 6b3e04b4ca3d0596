"""What a card says a method takes, made up: small models, recipes with every kind of value of its parameters."""

import itertools

import torch

from paramdelta_dist.kernels import blocks
from paramdelta_dist.methods import Roles
from paramdelta_dist.recipe.model import Recipe
from tests.models import save_model

SHAPES = {
    "a.weight": (96, 100),
    "b.bias": (5,),
    "c.weight": (2, 100, 100),
    "d.scale": (),
    "e.weight": (3, 5_000),
    "f.empty": (0, 4),
    "g.norm": (64,),
}
"""A row longer than a small block, a tensor of one element, one of none, and some of several small blocks."""
SMALL_BLOCK = 1 << 12


def with_small_blocks(monkeypatch):
    """Blocks of SMALL_BLOCK elements, so that small tensors have several.

    Patched and not given: the size of a block is no choice of a run. Plan and kernels must agree on it, memory is computed from it, and
    a parameter would go through all of them for these tests alone.
    """
    monkeypatch.setattr(blocks, "METHOD_BLOCK", SMALL_BLOCK)


"""What the tests cut tensors by, so that small ones are of several blocks."""


def make_models(root, count, *, dtype=torch.bfloat16, shapes=SHAPES, seed=0):
    """Folders of models that are near to each other, with an integer tensor and exact zeros among the deltas."""
    generator = torch.Generator().manual_seed(seed)
    start = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    folders = []
    for number in range(count):
        tensors = {"z.steps": torch.arange(11)}
        for name, values in start.items():
            moved = values + 0.05 * torch.randn(values.shape, generator=generator, dtype=torch.float64) * (number > 0)
            same = torch.rand(values.shape, generator=generator) < 0.1
            tensors[name] = torch.where(same, values, moved).to(dtype)
        folders.append(save_model(root / f"model{number}", tensors, files=2))
    return folders


def sample(parameter):
    """A value that is neither the default nor neutral, if there is one."""
    if parameter.kind is bool:
        return not parameter.default
    if parameter.kind is str:
        return next((choice for choice in parameter.choices if choice != parameter.default), parameter.choices[0])
    least, most = max(parameter.minimum, 0.0), min(parameter.maximum, 1.0)
    if parameter.kind is int:
        return int(min(max(3, parameter.minimum), parameter.maximum))
    return 0.6 * least + 0.4 * most if most > least else parameter.default


def variants(method):
    """Parameters to try a method with: thinned out where it thins out, then each choice in turn."""
    numbers = {p.name: sample(p) for p in method.parameters if p.kind is float and (p.default is None or p.name in ("density", "t", "k"))}
    yield numbers
    for parameter in method.parameters:
        if parameter.kind is bool:
            yield {**numbers, parameter.name: not parameter.default}
        for choice in parameter.choices:
            if choice != parameter.default:
                yield {**numbers, parameter.name: choice}


def recipe_for(method, folders, output, parameters=None, *, count=None, each=(), **more):
    """A recipe that gives `method` the first of `folders` as base, where it takes one, and the others; `each` are their own keys."""
    names = [str(folder) for folder in folders]
    document = {"method": method.name, "output": str(output), **({"parameters": parameters} if parameters else {}), **more}
    own = itertools.chain(each, itertools.repeat({}))
    if method.roles is Roles.DELTAS:
        count = count or min(method.max_models or 3, 3)
        document |= {"base": names[0], "deltas": [{"post": name, **next(own)} for name in names[1 : 1 + count]]}
    elif method.roles is Roles.PAIR:
        document |= {"base": names[0], "models": [{"model": names[1], **next(own)}]}
    else:
        count = count or min(method.max_models or 3, 3)
        document["models"] = [{"model": name, **next(own)} for name in names[:count]]
    return Recipe.model_validate(document)
