"""Every method in numpy and float64, on whole tensors, straight from its formula: the judge of the streamed ones.

`base` is what receives, `deltas` is a list of post − base, `models` a list of whole models. Equal magnitudes are ordered by index.
"""

import itertools

import numpy as np


def order(x):
    """Flat indices by magnitude downwards, then by index."""
    return np.argsort(-np.abs(x).ravel(), kind="stable")


def only(x, indices):
    """x at the given flat indices, 0 elsewhere."""
    kept = np.zeros(x.size)
    kept[indices] = x.ravel()[indices]
    return kept.reshape(x.shape)


def weighted(vectors, weights):
    return sum(weight * vector for vector, weight in zip(vectors, weights, strict=True))


# sums


def linear(models, weights, normalize=True):
    return weighted(models, weights) / (sum(weights) if normalize else 1)


def task_arithmetic(base, deltas, weights, factor=1.0):
    return base + factor * weighted(deltas, weights)


def expo(post, delta, alpha):
    return post + alpha * delta


# sparse deltas


def trim(delta, density):
    return only(delta, order(delta)[: int(density * delta.size)])


def agreeing(vectors):
    """Where each vector has the sign of their sum, which is + where the sum is 0. A zero agrees with nothing."""
    positive = sum(vectors) >= 0
    return [np.where(positive, vector > 0, vector < 0) for vector in vectors]


def consensus(base, deltas, weights, normalize, factor=1.0):
    """The weighted deltas that agree in sign, divided by how many they are ("count"), by their weights ("weight") or not at all."""
    vectors = [weight * delta for delta, weight in zip(deltas, weights, strict=True)]
    agree = agreeing(vectors)
    mixed = sum(np.where(mask, vector, 0) for vector, mask in zip(vectors, agree, strict=True))
    if normalize != "none":
        shares = weights if normalize == "weight" else [1] * len(weights)
        divisor = sum(share * mask for share, mask in zip(shares, agree, strict=True))
        mixed = mixed / np.where(divisor == 0, 1, divisor)
    return base + factor * mixed


def ties(base, deltas, weights, density, normalize, factor=1.0):
    return consensus(base, [trim(delta, density) for delta in deltas], weights, normalize, factor)


def rescaled(delta, kept, rescale, p):
    """What was kept of a delta, stretched to stand for all of it."""
    if rescale == "inverse_p":
        return kept / (1 - p)
    if rescale == "l1" and min(np.abs(delta).sum(), np.abs(kept).sum()) >= 1e-7:
        return kept * (np.abs(delta).sum() / np.abs(kept).sum())
    return kept


def dare(delta, keep, p, rescale="inverse_p", k=0.0):
    """`keep` says which elements are not dropped; dropped ones stay with factor k."""
    if k:
        return np.where(keep, (1 - k * p) / (1 - p), k) * delta
    return rescaled(delta, np.where(keep, delta, 0), rescale, p)


def della_probabilities(delta, density, epsilon):
    """Of each element to be kept: by its rank in its row, the largest magnitude first."""
    rows = delta.reshape(-1, delta.shape[-1]) if delta.ndim else delta.reshape(1, 1)
    probabilities = np.full(rows.shape, density, dtype=np.float64)
    if rows.shape[1] > 1:
        for row, found in zip(rows, probabilities, strict=True):
            found[order(row)] = density + epsilon - 2 * epsilon * np.arange(len(row)) / (len(row) - 1)
    return probabilities.reshape(delta.shape)


def della(delta, uniforms, density, epsilon, rescale):
    q = della_probabilities(delta, density, epsilon)
    kept = np.where(uniforms < q, delta, 0)
    return kept / q if rescale == "inverse_q" else rescaled(delta, kept, rescale, 1 - density)


def breadcrumbs(delta, density, gamma):
    """Of the whole tensor: without the largest share gamma, the largest `density` of all that are left."""
    target, top = int(density * delta.size), int(gamma * delta.size)
    top = min(top, delta.size - target)
    return only(delta, order(delta)[top : top + target])


def breadcrumbs_rows(delta, density, gamma):
    """The same in each row; what is left of a row may be less than `density` of it."""
    rows = delta.reshape(-1, delta.shape[-1]) if delta.ndim else delta.reshape(1, 1)
    n = rows.shape[1]
    top = int(n * gamma)
    return np.stack([only(row, order(row)[top : top + int(n * density)]) for row in rows]).reshape(delta.shape)


# directions


def unit(x):
    return x / np.linalg.norm(x)


def arc(t, a, b, linear_from):
    """From a to b along the arc between their directions; on a line where the cosine's magnitude is above `linear_from`."""
    if min(np.linalg.norm(a), np.linalg.norm(b)) == 0:
        return (1 - t) * a + t * b
    cosine = np.clip((unit(a) * unit(b)).sum(), -1, 1)
    if abs(cosine) > linear_from:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def slerp(a, b, t):
    return arc(t, a, b, 0.9995)


def nuslerp(a, b, weights, axis=None):
    """`axis` None: the whole tensors are two vectors; -1: each row is one; 0: each column."""
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    almost = 1 - 1e-15
    if axis is None:
        return arc(t, a, b, almost)
    if axis == 0:
        return nuslerp(a.T, b.T, weights, -1).T
    return np.stack([arc(t, x, y, almost) for x, y in zip(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), strict=True)]).reshape(
        a.shape
    )


def multislerp(vectors, weights):
    weights = np.array(weights) / sum(weights)
    norms = [np.linalg.norm(vector) for vector in vectors]
    units = [vector / (norm + 1e-8) for vector, norm in zip(vectors, norms, strict=True)]
    mean = weighted(units, weights)
    if np.linalg.norm(mean) < 1e-8:
        return weighted(vectors, weights)
    mean = unit(mean)
    tangent = weighted([u - (u * mean).sum() * mean for u in units], weights)
    angle = np.linalg.norm(tangent) + 1e-8
    return (np.cos(angle) * mean + np.sin(angle) / angle * tangent) * weighted(norms, weights)


def karcher(models, iterations=10, tolerance=1e-5):
    norms = [np.linalg.norm(model) for model in models]
    units = [model / norm for model, norm in zip(models, norms, strict=True) if norm > tolerance]
    if not units:
        return np.zeros_like(models[0])
    share = 1 / len(units)
    centre = share * sum(units)
    centre = units[0] if np.linalg.norm(centre) < tolerance else unit(centre)
    for _ in range(iterations):
        tangent = np.zeros_like(centre)
        for u in units:
            cosine = np.clip((u * centre).sum(), -1, 1)
            angle = np.arccos(cosine)
            if angle >= tolerance:
                tangent += share * angle / np.sin(angle) * (u - cosine * centre)
        step = np.linalg.norm(tangent)
        if step < tolerance:
            break
        centre = unit(np.cos(step) * centre + np.sin(step) * tangent / step)
    return np.mean(norms) * centre


def model_stock(base, deltas, rows=False):
    """Between the base and the mean of the models, by how far the deltas agree; `rows`: decided in each row."""
    n = len(deltas)
    axis = -1 if rows and base.ndim else None
    cosines = []
    for one, two in itertools.combinations(deltas, 2):
        product = np.linalg.norm(one, axis=axis, keepdims=True) * np.linalg.norm(two, axis=axis, keepdims=True)
        cosines.append(np.clip((one * two).sum(axis=axis, keepdims=True) / np.maximum(product, 1e-6), -1, 1))
    cosine = np.mean(cosines, axis=0)
    below = 1 + (n - 1) * cosine
    t = np.where(np.abs(below) < 1e-6, 0, n * cosine / np.where(np.abs(below) < 1e-6, 1, below))
    return base + t * sum(deltas) / n


# by element


def sce(base, deltas, topk=1.0):
    if topk < 1:
        variance = np.var(deltas, axis=0)
        chosen = order(variance)[: int(np.count_nonzero(variance) * topk)]
        deltas = [only(delta, chosen) for delta in deltas]
    energies = [np.mean(delta**2) for delta in deltas]
    total = sum(energies)
    shares = [energy / total for energy in energies] if total >= 1e-6 else [1 / len(deltas)] * len(deltas)
    agree = agreeing(deltas)
    mixed = sum(share * np.where(mask, delta, 0) for share, delta, mask in zip(shares, deltas, agree, strict=True))
    return base + mixed / np.maximum(sum(share * mask for share, mask in zip(shares, agree, strict=True)), 1e-6)


def nearswap(a, b, t):
    share = np.clip(t / np.maximum(np.abs(a - b), 1e-6), 0, 1)
    return share * b + (1 - share) * a


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def arcee_importance(base, model):
    p, q = softmax(model) + 1e-8, softmax(base) + 1e-8
    return np.abs(model - base) * (p * np.log(p / q)).sum(-1, keepdims=True)


def arcee_fusion(base, model):
    importance = arcee_importance(base, model)
    ascending = np.sort(importance.ravel())
    quarter, half, three = (ascending[int(share * (ascending.size - 1))] for share in (0.25, 0.5, 0.75))
    return np.where(importance >= half + 1.5 * (three - quarter), model, base)


def ram(base, deltas, epsilon=1e-5, r=None, alpha=None):
    """With r and alpha: ramplus_tl."""
    active = [np.abs(delta) > epsilon for delta in deltas]
    many = sum(mask.astype(int) for mask in active)
    result = base.copy()
    for delta, mask in zip(deltas, active, strict=True):
        factor = 1.0
        if r is not None:
            shared, alone = (mask & (many > 1)).sum(), (mask & (many == 1)).sum()
            factor += r * np.clip(shared / max(alone, epsilon), 0, alpha)
        result += np.where(mask & (many == 1), factor * delta, 0) + np.where(mask & (many > 1), delta / np.maximum(many, 1), 0)
    return result
