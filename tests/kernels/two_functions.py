"""Functions that take no time to compile, compiled as the kernels are."""

from paramdelta_dist.kernels.jit import compiled


@compiled()
def twice(number):
    return 2 * number


@compiled()
def four_times(number):
    return twice(twice(number))
