"""Thin singular value decompositions of a batch of deltas, by matrix products."""

from typing import NamedTuple

import torch

from .linalg import eigh_descending, qr

# Directions kept per model of a large layer. Measured without power iteration: 48 give
# .978 label accuracy where all give .980; 16 lose four points.
N_DIRECTIONS = 48
N_OVERSAMPLES = 8
# Below this width an exact decomposition is cheaper than a sketch.
EXACT_BELOW = 160


class SpectralFactors(NamedTuple):
    """Deltas as ``norms * left @ diag(singular) @ right.mT``.

    The decomposed deltas have unit Frobenius norm; a delta of zero has norm and
    singular values zero. `rows` takes the vectors of a whole batch without a copy where
    each lies in one piece of memory, as `combine` leaves them.
    """

    norms: torch.Tensor  # (b,)
    left: torch.Tensor  # (b, d_out, k)
    singular: torch.Tensor  # (b, k), descending
    right: torch.Tensor  # (b, d_in, k)


def combine(bases, coefficients):
    """Products ``(b, d, m) @ (b, m, k)``, each column in one piece of memory."""
    return (coefficients.mT @ bases.mT).mT


def rows(basis):
    """Vectors of a batch ``(b, d, k)``, one below the other, ``(b * k, d)``."""
    return basis.mT.flatten(0, 1)


def unrow(rows, n_models):
    """Undo `rows`."""
    return rows.unflatten(0, (n_models, -1)).mT


def concatenate(parts):
    """Put the factors of several batches into one, vectors in one piece of memory."""
    if len(parts) == 1:
        return parts[0]
    norms, left, singular, right = zip(*parts, strict=True)
    left, right = (torch.cat([b.mT for b in bases]).mT for bases in (left, right))
    return SpectralFactors(torch.cat(norms), left, torch.cat(singular), right)


def frobenius_norms(deltas):
    """Norms that neither overflow nor underflow in the squares, ``(b,)``."""
    # Row by row: a single sum over a million entries loses half the digits of float32.
    norms = torch.linalg.vector_norm(torch.linalg.vector_norm(deltas, dim=2), dim=1)
    # One pass is enough, unless squares of these would leave the range of the dtype.
    safe = torch.finfo(norms.dtype).tiny ** 0.25
    if bool(((norms > safe) & (norms < 1 / safe)).all()):
        return norms
    scaled, largest = _scale_to_one(deltas)
    return torch.linalg.vector_norm(scaled, dim=(1, 2)) * largest


def draw_sketch(d_out, d_in, generator, dtype, device):
    """Draw the random test matrix shared by all models, or None for small layers.

    One matrix for all models keeps the result independent of their order and of
    the batches they come in.
    """
    if min(d_out, d_in) <= EXACT_BELOW:
        return None
    width = N_DIRECTIONS + N_OVERSAMPLES
    sketch = torch.randn(min(d_out, d_in), width, generator=generator)
    return sketch.to(dtype=dtype, device=device)


def thin_svd(deltas, sketch):
    """Decompose a batch of deltas.

    Parameters
    ----------
    deltas : Tensor of shape (b, d_out, d_in)
    sketch : Tensor of shape (min(d_out, d_in), width) or None
        The test matrix of a randomised range finder (Halko, Martinsson & Tropp,
        2011, algorithm 4.1); None decomposes exactly.

    Returns
    -------
    SpectralFactors
    """
    norms = frobenius_norms(deltas)
    divisors = norms.clamp_min(_tiny(deltas))[:, None, None]
    # The Gram matrix on the shorter side: its eigenvectors are cheap.
    wide = deltas.shape[1] < deltas.shape[2]
    tall = deltas.mT if wide else deltas  # (b, long, short)
    if sketch is None:
        long, singular, short = _svd_by_gram(tall / divisors)
    else:
        # The small products are divided, not the large deltas.
        basis = _orthonormal((tall @ sketch) / divisors)  # (b, long, width)
        core = (tall.mT @ basis) / divisors  # (b, short, width)
        short, singular, rotation = _svd_by_gram(core)
        keep = slice(0, N_DIRECTIONS)
        singular, short = singular[:, keep], short[:, :, keep]
        long = combine(basis, rotation[:, :, keep])
    left, right = (short, long) if wide else (long, short)
    return SpectralFactors(norms, left, singular, right)


def thin_svd_of_product(B, A):
    """Decompose the products ``B @ A`` without forming them.

    Through the QR decomposition of the shorter factor: what its triangle makes of the
    other one has the singular values of the product.

    Parameters
    ----------
    B : Tensor of shape (b, d_out, r)
    A : Tensor of shape (b, r, d_in)

    Returns
    -------
    SpectralFactors
        Of r directions, with zeros where the rank is smaller.
    """
    wide = B.shape[1] < A.shape[2]
    factor, other = (B, A.mT) if wide else (A.mT, B)  # (b, short, r), (b, long, r)
    basis, triangle = qr(factor)
    triangle, scale = _scale_to_one(triangle)
    tall = combine(other, triangle.mT)  # (b, long, min(short, r))
    lengths = frobenius_norms(tall.mT)
    tall /= lengths.clamp_min(_tiny(tall))[:, None, None]
    long, singular, rotation = _svd_by_gram(tall)
    short = combine(basis, rotation)
    left, right = (short, long) if wide else (long, short)
    return SpectralFactors(lengths * scale, left, singular, right)


def _svd_by_gram(tall):
    """Singular value decomposition from the eigenvectors of ``tall.mT @ tall``.

    Directions below the square root of the machine's precision are noise; they are
    returned, as no view gives them weight.
    """
    eigenvalues, vectors = eigh_descending(tall.mT @ tall)
    singular = eigenvalues.clamp_min(0).sqrt()
    products = combine(tall, vectors)  # (b, long, k), columns of length `singular`
    lengths = singular.clamp_min(_floor(tall))
    return products / lengths[:, None, :], singular, vectors


def _orthonormal(tall):
    """Orthonormal columns that span those of ``(b, long, k)``, by products alone.

    A Householder QR would take several times as long as the products around it. What is
    lost are directions below the square root of the machine's precision, relative to
    the largest: their columns come out shorter than one.
    """
    eigenvalues, vectors = eigh_descending(tall.mT @ tall)
    largest = eigenvalues[:, :1].clamp_min(_tiny(tall))
    lengths = eigenvalues.clamp_min(0).sqrt().maximum(largest.sqrt() * _floor(tall))
    return (tall @ vectors) / lengths[:, None, :]


def _scale_to_one(matrices):
    """Divide each matrix by its largest entry, so that squares stay in range."""
    largest = matrices.abs().amax(dim=(1, 2)).clamp_min(_tiny(matrices))
    return matrices / largest[:, None, None], largest


def _floor(tensor):
    return torch.finfo(tensor.dtype).eps ** 0.5


def _tiny(tensor):
    return torch.finfo(tensor.dtype).tiny
