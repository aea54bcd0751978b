"""Decompositions of small matrices, on one thread.

LAPACK splits them into thousands of tiny parallel regions. On an idle machine that
gains little below a thousand rows; on a busy one, every region waits for a core, and an
eigendecomposition of 700 rows was seen to take 7 s in place of 0.05 s.
"""

from contextlib import nullcontext
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


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


def svd(matrices):
    """Thin singular value decomposition, the right vectors as columns."""
    with _one_thread(matrices):
        left, singular, right = torch.linalg.svd(matrices, full_matrices=False)
    return left, singular, right.mT


def fix_signs(vectors):
    """Turn each row so that its entry of largest magnitude is positive."""
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    return vectors * vectors.gather(1, largest).sign()


def _one_thread(tensor):
    if tensor.device.type != "cpu":
        return nullcontext()
    return _controller().limit(limits=1, user_api="openmp")


@cache
def _controller():
    return ThreadpoolController()
