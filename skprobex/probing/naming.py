"""Naming models by text: the text side of the joint space, and how naming is scored.

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
from .ridge.path import Penalty

# Neighbours whose mean cosine tells how near a label is to everything.
N_NEIGHBORS = 10
WHITENING_POWERS = (0.0, 0.25, 0.5, 1.0)
HUBNESS_PENALTIES = (0.0, 0.5, 1.0)
# Views and layers are compared with these strengths, before they are tuned, in the
# leading directions of the text, and at every other ridge penalty.
DEFAULT_POWER, DEFAULT_PENALTY = 0.25, 0.5
N_DIRECTIONS = 64


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


class Naming:
    """The task of naming each model by one of many labels.

    Parameters
    ----------
    vectors : Tensor of shape (n_labels, d_text)
        float64, on the device that solves.
    labels : Tensor of int, shape (n_models,)
        Number of each model's label.
    n_components : int, optional
        Dimensions of the embeddings; None: those of the text.
    """

    def __init__(self, vectors, labels, n_components=None):
        self.vectors, self.labels, self.n_components = vectors, labels, n_components
        n_compared = min(n_components or N_DIRECTIONS, N_DIRECTIONS)
        side = fit_text_side(vectors, DEFAULT_POWER, n_compared)
        self.embeddings = side.embed(vectors)

    def take(self, models):
        """Name only some of the models, ``(n_taken,)`` positions."""
        numbers, labels = self.labels[models].unique(return_inverse=True)
        return Naming(self.vectors[numbers], labels, self.n_components)

    @property
    def targets(self):
        """What the ridge predicts while views are compared."""
        return self.embeddings[self.labels]

    def choose_penalty(self, path, alphas):
        """Choose the ridge's penalty on labels left out whole.

        See `selection.choose_penalty`.
        """
        alphas = alphas[::2]
        predictions = path.leave_group_out(alphas, self.labels)
        scores = [
            self.score(part, self.embeddings, DEFAULT_PENALTY)
            for part in unit_rows(predictions, dim=2)
        ]
        best = max(range(len(scores)), key=scores.__getitem__)
        accuracy, reciprocal_rank = scores[best]
        alpha = alphas[best].expand(predictions.shape[2])
        return Penalty(alpha, predictions[best], accuracy, -reciprocal_rank)

    def tune(self, path, alphas):
        """Choose whitening, hubness penalty and ridge penalty together.

        Parameters
        ----------
        path : RidgePath
            On the chosen features. Its targets are set to the chosen embeddings.
        alphas : sequence of float

        Returns
        -------
        side : TextSide
        alpha : Tensor of shape (n_components,)
        """
        alphas = torch.as_tensor(alphas, dtype=path.targets.dtype)
        alphas = alphas.to(path.targets.device)
        best = None
        for power in WHITENING_POWERS:
            side = fit_text_side(self.vectors, power, self.n_components)
            embeddings = side.embed(self.vectors)
            path.set_targets(embeddings[self.labels])
            left_out = unit_rows(path.leave_group_out(alphas, self.labels), dim=2)
            for penalty in HUBNESS_PENALTIES:
                for alpha, predictions in zip(alphas, left_out, strict=True):
                    score = self.score(predictions, embeddings, penalty)
                    if best is None or score > best[0]:
                        best = score, alpha, power, penalty, predictions
        _, alpha, power, penalty, predictions = best
        side = fit_text_side(self.vectors, power, self.n_components)
        side.penalty, side.predictions, side.labels = penalty, predictions, self.labels
        embeddings = side.embed(self.vectors)
        path.set_targets(embeddings[self.labels])
        return side, alpha.expand(embeddings.shape[1])

    def score(self, predictions, embeddings, penalty):
        """Share of models named rightly, and mean reciprocal rank of the right name.

        Parameters
        ----------
        predictions : Tensor of shape (n_models, n_components)
            Unit rows.
        embeddings : Tensor of shape (n_labels, n_components)
        penalty : float
        """
        similar = predictions @ embeddings.T  # (n_models, n_labels)
        if penalty:
            numbers = torch.arange(len(embeddings), device=similar.device)
            similar = similar - penalty * hubness(similar, self.labels, numbers)
        own = similar.gather(1, self.labels[:, None])
        rank = (similar > own).sum(dim=1) + 1
        return (rank == 1).double().mean().item(), (1 / rank).mean().item()


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
