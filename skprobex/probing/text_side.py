"""The text side of the space that models share with text, and how names compete.

Text vectors t of the training labels are centred and softly whitened,

    e(t) = unit(diag(s^-power) V^T (t - mean)),

with V and s the singular vectors and values of the centred labels. A ridge predicts
the embedding of a model's label from its features, and a model gets the label of
highest cosine, less a penalty on labels that are near to everything (CSLS; Conneau et
al., 2018). All strengths are chosen on labels that were left out whole, so
that what is tuned is the naming of the unseen.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize as unit_rows

from .._registry import saved

# Neighbours whose mean cosine tells how near a label is to everything.
N_NEIGHBORS = 10


@saved
@dataclass
class TextSide:
    """The affine map from text vectors to embeddings, and how labels compete.

    Attributes
    ----------
    axes : Tensor of shape (d_text, n_components)
    offset : Tensor of shape (n_components,)
    penalty : float
        Share of the hubness that is subtracted from the cosines.
    predictions : Tensor of shape (n_models, n_components) or None
        Embeddings of the training models, each by the ridge that has not seen its
        label.
    labels : Tensor of int, shape (n_models,) or None
        Label number of each training model.
    """

    axes: torch.Tensor
    offset: torch.Tensor
    penalty: float = 0.0
    predictions: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def to(self, device, dtype):
        """Move to a device and cast."""
        return TextSide(
            self.axes.to(device, dtype),
            self.offset.to(device, dtype),
            self.penalty,
            self.predictions.to(device, dtype),
            self.labels.to(device),
        )

    def embed(self, vectors):
        """Embed text vectors, ``(n_texts, n_components)``, unit rows."""
        return unit_rows(vectors @ self.axes + self.offset)

    def similarities(self, embeddings, candidates, numbers):
        """Cosines less the hubness penalty.

        Parameters
        ----------
        embeddings : Tensor of shape (n_models, n_components)
            Unit rows.
        candidates : Tensor of shape (n_candidates, n_components)
            Embedded labels to choose from.
        numbers : Tensor of int, shape (n_candidates,)
            Number of each among the training labels, -1 if it is none of them.

        Returns
        -------
        Tensor of shape (n_models, n_candidates)
        """
        cosines = embeddings @ candidates.T
        if not self.penalty:
            return cosines
        near = self.predictions @ candidates.T
        return cosines - self.penalty * hubness(near, self.labels, numbers)


def fit_text_side(vectors, power, n_components=None):
    """Centre and whiten the vectors of the training labels.

    Parameters
    ----------
    vectors : Tensor of shape (n_labels, d_text)
    power : float
        0 leaves the spread of the labels as it is, 1 makes it equal in all directions.
    n_components : int, optional
        Principal directions to keep. None keeps all, turned back to the text's own
        dimensions.

    Returns
    -------
    TextSide
    """
    mean = vectors.mean(dim=0)
    _, spread, directions = torch.linalg.svd(vectors - mean, full_matrices=False)
    floor = torch.finfo(vectors.dtype).eps * max(vectors.shape)
    spread, directions = spread[:n_components], directions[:n_components]
    shares = spread / spread[:1].clamp_min(torch.finfo(spread.dtype).tiny)
    gain = torch.where(shares > floor, shares.clamp_min(floor) ** -power, 0.0)
    axes = directions.T * gain
    if n_components is None:
        axes = axes @ directions
    return TextSide(axes, -mean @ axes)


def hubness(near, labels, numbers):
    """Mean cosine of each candidate to its nearest models of other labels.

    Parameters
    ----------
    near : Tensor of shape (n_models, n_candidates)
        Cosines to the training models.
    labels : Tensor of int, shape (n_models,)
    numbers : Tensor of int, shape (n_candidates,)
        Numbers of the candidates among the training labels; -1 for others.

    Returns
    -------
    Tensor of shape (n_candidates,)
    """
    others = near.masked_fill(labels[:, None] == numbers, -1.0)
    return others.topk(min(N_NEIGHBORS, len(others)), dim=0).values.mean(dim=0)
