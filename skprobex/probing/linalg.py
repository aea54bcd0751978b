"""Decompositions of small matrices, on one thread.

LAPACK splits them into thousands of tiny parallel regions. On an idle machine that
gains little below a thousand rows; on a busy one, every region waits for a core, and an
eigendecomposition of 700 rows was seen to take 7 s in place of 0.05 s.
"""

from contextlib import nullcontext
from functools import cache

import torch
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
    with one_thread(matrices):
        eigenvalues, vectors = torch.linalg.eigh(matrices)
    return eigenvalues.flip(-1), vectors.flip(-1)


def qr(matrices):
    """Thin QR decomposition of matrices ``(..., d, k)``."""
    with one_thread(matrices):
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


def leading_directions(rows, n_directions, precision):
    """Leading principal directions of centred rows, by subspace iteration.

    Halko, Martinsson & Tropp (2011), algorithm 4.4.

    Parameters
    ----------
    rows : Tensor of shape (n, p)
    n_directions : int
    precision : float
        Share of the largest variance below which a direction is noise.

    Returns
    -------
    Tensor of shape (at most n_directions, p)
        Orthonormal rows, signs fixed.
    """
    width = min(rows.shape[1], n_directions + N_OVERSAMPLES)
    test = torch.randn(rows.shape[1], width, generator=torch.Generator().manual_seed(0))
    basis = test.to(rows)
    for _ in range(N_ITERATIONS):
        basis, _ = qr(rows.T @ (rows @ basis))
    seen = rows @ basis
    variances, rotation = eigh_descending(seen.T @ seen)
    n_kept = int((variances[:n_directions] > precision * variances[0]).sum())
    # Models without variance: one direction, so that there is one to return.
    return fix_signs((basis @ rotation)[:, : max(1, n_kept)].T)


def fix_signs(vectors):
    """Turn each row so that its entry of largest magnitude is positive."""
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()


def one_thread(tensor):
    """Compute on one thread while the context lasts; other threads keep theirs.

    Parameters
    ----------
    tensor : Tensor
        What is computed with: where it is on a GPU, nothing changes.

    Notes
    -----
    MKL follows as long as nobody has called `torch.set_num_threads`: that tells MKL a
    number of its own, which only the same call takes back, for the whole process.
    """
    if tensor.device.type != "cpu" or torch.get_num_threads() == 1:
        return nullcontext()
    return _controller().limit(limits=1, user_api="openmp")


@cache
def _controller():
    return ThreadpoolController()
