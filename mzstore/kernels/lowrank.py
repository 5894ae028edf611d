"""Kernels of low-rank parts: factors to values.

Arithmetic is float32 with one rounding per operation, in one order, so that every slice and NumPy give the same bits.
"""

from mzstore.kernels.planes import jit

COLUMNS = 512  # of a step: their sums and rows of the right factor stay in the first-level cache


@jit
def multiply(left, right, scale, out):
    """out[i, j] = (left[i, 0] * right[0, j] + left[i, 1] * right[1, j] + ...) * scale, summed from left to right.

    left   float32 [rows, rank], rank >= 1
    right  float32 [rank, cols]
    out    float32 [rows, cols]
    """
    rows, rank = left.shape
    cols = right.shape[1]
    for start in range(0, cols, COLUMNS):
        stop = min(start + COLUMNS, cols)
        for i in range(rows):
            factor = left[i, 0]
            for j in range(start, stop):
                out[i, j] = factor * right[0, j]
            k = 1
            while k + 4 <= rank:  # sums are loaded and stored once for four products
                a, b, c, d = left[i, k], left[i, k + 1], left[i, k + 2], left[i, k + 3]
                for j in range(start, stop):
                    out[i, j] = (
                        ((out[i, j] + a * right[k, j]) + b * right[k + 1, j]) + c * right[k + 2, j]
                    ) + d * right[k + 3, j]
                k += 4
            while k < rank:
                factor = left[i, k]
                for j in range(start, stop):
                    out[i, j] += factor * right[k, j]
                k += 1
            for j in range(start, stop):
                out[i, j] *= scale


# See mzstore.kernels.machine_code.
SIGNATURES = {"multiply": ["void float32[,] float32[,] float32 float32[,]"]}
