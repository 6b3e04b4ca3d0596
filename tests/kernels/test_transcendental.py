"""exp and log against the C library's: a few units of the last place apart at most."""

import math

import numpy as np
import torch

from paramdelta_dist.kernels.transcendental import exp_of_negative, log


def ulps(found, expected):
    return (np.abs(found.numpy() - expected) / np.spacing(np.abs(expected))).max()


def test_exp_of_negative_numbers():
    x = torch.cat([-torch.logspace(-300, 2.84, 20_000, dtype=torch.float64), torch.tensor([0.0, -0.0, -1.0, -708.0])])
    assert ulps(exp_of_negative(x), np.exp(x.numpy())) <= 3
    assert exp_of_negative(torch.tensor([0.0], dtype=torch.float64)).item() == 1.0
    assert exp_of_negative(torch.tensor([-math.inf, -1e9], dtype=torch.float64)).max() < 1e-300
    assert exp_of_negative(torch.tensor([math.nan], dtype=torch.float64)).isnan().all()


def test_log_near_one_and_far_from_it():
    x = torch.cat([torch.logspace(-300, 300, 20_000, dtype=torch.float64), 1 + torch.logspace(-15, -1, 5000, dtype=torch.float64)])
    x = torch.cat([x, 2 - x[-5000:], torch.tensor([1.0, 0.5, 2.0, math.sqrt(2)])])
    assert ulps(log(x), np.where(x.numpy() == 1, 5e-324, np.log(x.numpy()))) <= 3
    assert log(torch.tensor([1.0], dtype=torch.float64)).item() == 0.0
    assert log(torch.tensor([math.nan], dtype=torch.float64)).isnan().all()
