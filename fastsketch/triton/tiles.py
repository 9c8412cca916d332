"""What the kernels share: rows of a strided matrix, and the products of two sets of rows.

Numbers and offsets: everything is accumulated in float32; offsets are int64 from the program's number on, so tensors of
more than 2^31 elements need no other kernel.
"""

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453


@triton.jit
def row_pointers(base, rows, stride):
    """Pointers [R] to the first element of each row."""
    return base + rows.to(tl.int64) * stride


@triton.jit
def load_rows(pointers, valid, columns, width, stride):
    """Rows [R] of pointers, at columns [C] of `width`, as [R, C]; zero outside and where not valid [R]."""
    offset = columns.to(tl.int64) * stride
    inside = valid[:, None] & (columns < width)[None, :]
    return tl.load(pointers[:, None] + offset[None, :], mask=inside, other=0.0)


@triton.jit
def sum_of_squares(x):
    """[R, C] to [R], in float32."""
    x = x.to(tl.float32)
    return tl.sum(x * x, 1)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """[M, K] times [K, N], float32 [M, N], on tensor cores in the operands' dtype, or as float32 (WIDE)."""
    if WIDE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def products(
    x,  # [X, BLOCK_K], used if RESIDENT: the whole of x's rows
    x_rows,  # [X] pointers
    x_valid,  # [X]
    x_stride,
    y_rows,  # [Y] pointers
    y_valid,  # [Y]
    y_stride,
    width,
    RESIDENT: tl.constexpr,  # width <= BLOCK_K: one tile holds a row
    SQUARES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """(x yᵀ [X, Y], the last tile of y [Y, BLOCK_K], the sums of squares of y's rows [Y] if SQUARES)."""
    columns = tl.arange(0, BLOCK_K)
    squares = tl.zeros([y_rows.shape[0]], tl.float32)
    if RESIDENT:
        y = load_rows(y_rows, y_valid, columns, width, y_stride)
        total = dot(x, y.T, PRECISION, WIDE)
        if SQUARES:
            squares = sum_of_squares(y)
    else:
        y = tl.zeros([y_rows.shape[0], BLOCK_K], x_rows.dtype.element_ty)
        total = tl.zeros([x_rows.shape[0], y_rows.shape[0]], tl.float32)
        for start in range(0, width, BLOCK_K):
            part = load_rows(x_rows, x_valid, start + columns, width, x_stride)
            y = load_rows(y_rows, y_valid, start + columns, width, y_stride)
            total += dot(part, y.T, PRECISION, WIDE)
            if SQUARES:
                squares += sum_of_squares(y)
    return total, y, squares


@triton.jit
def own_products(
    x_rows,  # [X] pointers
    y_rows,  # [X] pointers
    valid,  # [X]
    x_stride,
    y_stride,
    width,
    CHUNK: tl.constexpr = 32,
):
    """(x_i·y_i, |x_i|², |y_i|²), each [X], in plain float32 whatever the precision of the tensor cores."""
    own = tl.zeros([x_rows.shape[0]], tl.float32)
    x_squares = tl.zeros([x_rows.shape[0]], tl.float32)
    y_squares = tl.zeros([x_rows.shape[0]], tl.float32)
    for start in range(0, width, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        x = load_rows(x_rows, valid, columns, width, x_stride).to(tl.float32)
        y = load_rows(y_rows, valid, columns, width, y_stride).to(tl.float32)
        own += tl.sum(x * y, 1)
        x_squares += tl.sum(x * x, 1)
        y_squares += tl.sum(y * y, 1)
    return own, x_squares, y_squares
