"""Decompositions of small matrices, on one thread.

LAPACK splits them into thousands of tiny parallel regions. On an idle machine that
gains little below a thousand rows; on a busy one, every region waits for a core, and an
eigendecomposition of 700 rows was seen to take 7 s in place of 0.05 s.
"""

from contextlib import nullcontext
from functools import cache

import torch
from scipy.linalg import lapack
from threadpoolctl import ThreadpoolController

# Columns of a block of a symmetric product: wide enough for a fast product, and narrow
# enough to leave out three eighths of one of 256 columns.
GRAM_BLOCK = 64
# Of the subspace iteration.
N_OVERSAMPLES, N_ITERATIONS = 32, 2


def eigh_descending(matrices):
    """Eigenvalues from the largest down, and their eigenvectors.

    Parameters
    ----------
    matrices : Tensor of shape (..., d, d)
        Symmetric.

    Returns
    -------
    eigenvalues : Tensor of shape (..., d)
    eigenvectors : Tensor of shape (..., d, d)
    """
    with _one_thread(matrices):
        eigenvalues, vectors = torch.linalg.eigh(matrices)
    return eigenvalues.flip(-1), vectors.flip(-1)


def qr(matrices):
    """Thin QR decomposition of matrices ``(..., d, k)``."""
    with _one_thread(matrices):
        return torch.linalg.qr(matrices)


def gram(rows):
    """Sum of the outer products of the rows of ``(m, d)``: ``rows.T @ rows``.

    Only what lies on and above the diagonal is multiplied, in blocks of columns.
    """
    d = rows.shape[1]
    return mirror(add_gram(rows.new_zeros(d, d), rows))


def add_gram(total, rows):
    """Add the outer products to what is on and above the diagonal, in place."""
    for start in range(0, len(total), GRAM_BLOCK):
        block = slice(start, start + GRAM_BLOCK)
        total[block, start:].addmm_(rows[:, block].T, rows[:, start:])
    return total


def mirror(total):
    """Copy what is above the diagonal below it, in place."""
    for start in range(0, len(total), GRAM_BLOCK):
        stop = start + GRAM_BLOCK
        block = total[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total


def inverse_cholesky(matrix):
    """Inverse of the lower Cholesky factor, in the memory of the matrix on a CPU.

    Parameters
    ----------
    matrix : Tensor of shape (n, n)
        Symmetric, positive definite.
    """
    if matrix.device.type != "cpu":
        factor = torch.linalg.cholesky(matrix)
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(factor, identity, upper=False)
    # LAPACK's inverse of a triangle takes a third of the operations. Its upper triangle
    # by columns is the lower one by rows.
    array = matrix.numpy().T
    factor, _ = lapack.dpotrf(array, lower=0, overwrite_a=1)
    inverse, _ = lapack.dtrtri(factor, lower=0, overwrite_c=1)
    return torch.from_numpy(inverse.T)


def leading_directions(parts, n_directions):
    """Leading eigenvectors of ``F.T @ F``, F (n, p), by subspace iteration.

    Halko, Martinsson & Tropp (2011), algorithm 4.4.

    Parameters
    ----------
    parts : callable
        Yields F, some columns at a time.
    n_directions : int

    Returns
    -------
    eigenvalues : Tensor of shape (n_directions,)
        Descending.
    eigenvectors : Tensor of shape (p, n_directions)
    """
    widths = [part.shape[1] for part in parts()]
    width = min(sum(widths), n_directions + N_OVERSAMPLES)
    test = torch.randn(sum(widths), width, generator=torch.Generator().manual_seed(0))
    basis = test.to(next(parts()))

    def see():
        return sum(
            part @ rows for part, rows in zip(parts(), basis.split(widths), strict=True)
        )

    for _ in range(N_ITERATIONS):
        seen = see()
        basis = qr(torch.cat([part.T @ seen for part in parts()]))[0]
    seen = see()
    eigenvalues, rotation = eigh_descending(seen.T @ seen)
    return eigenvalues[:n_directions], (basis @ rotation)[:, :n_directions]


def fix_signs(vectors):
    """Turn each row so that its entry of largest magnitude is positive."""
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()


def _one_thread(tensor):
    if tensor.device.type != "cpu" or torch.get_num_threads() == 1:
        return nullcontext()
    return _controller().limit(limits=1, user_api="openmp")


@cache
def _controller():
    return ThreadpoolController()
