"""What is predicted: how it is scored, its penalty chosen, and a network's loss."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.nn.functional import normalize as unit_rows

from .text_side import fit_text_side, hubness

WHITENING_POWERS = (0.0, 0.25, 0.5, 1.0)
HUBNESS_PENALTIES = (0.0, 0.5, 1.0)
# Names are compared with these strengths before they are tuned, in the leading
# directions of the text, and at every other ridge penalty.
DEFAULT_POWER, DEFAULT_PENALTY = 0.25, 0.5
N_TEXT_DIRECTIONS = 64


class Penalty(NamedTuple):
    """A penalty that leave-one-out chose, and how well it does.

    Attributes
    ----------
    alpha : Tensor of shape (n_targets,)
        Penalty of each target; equal for all classes.
    predictions : Tensor of shape (n_models, n_targets)
        Leave-one-out predictions at these penalties.
    score : float
    error : float
        What the penalty was chosen by; the smaller the better.
    """

    alpha: torch.Tensor
    predictions: torch.Tensor
    score: float
    error: float

    @property
    def rank(self):
        """The larger the better; the error decides between equal scores."""
        return self.score, -self.error


@dataclass(frozen=True)
class Task(ABC):
    """Targets of models, and what is wanted of predictions.

    Attributes
    ----------
    targets : Tensor of shape (n_models, n_targets)
        What a ridge predicts.
    weight : Tensor of shape (n_models,) or None
    """

    targets: torch.Tensor
    weight: torch.Tensor | None = None

    def __len__(self):
        return len(self.targets)

    @property
    def n_outputs(self):
        """Outputs of a network."""
        return self.targets.shape[1]

    def take(self, models):
        """The task of some models, ``(n_taken,)`` positions."""
        weight = None if self.weight is None else self.weight[models]
        return replace(self, targets=self.targets[models], weight=weight)

    def to(self, device, dtype):
        """Move to a device and cast."""
        weight = None if self.weight is None else self.weight.to(device, dtype)
        return replace(self, targets=self.targets.to(device, dtype), weight=weight)

    @property
    def rarity(self):
        """How much each model should be heard for being one of few, ``(n_models,)``."""
        return torch.zeros(len(self), dtype=torch.float64)

    def is_told_by(self, models):
        """Whether some models show all that there is to tell apart.

        Parameters
        ----------
        models : Tensor of bool, shape (n_models,)
        """
        return True

    @abstractmethod
    def score(self, predictions, shares=None, models=slice(None)):
        """Score predictions of some models, the larger the better.

        Parameters
        ----------
        predictions : Tensor of shape (n_models, n_targets)
        shares : Tensor of shape (n_models,), optional
            Weights that sum to one.
        models : Tensor of int, default=slice(None)
            The models predicted, all by default.

        Returns
        -------
        float
        """

    @abstractmethod
    def losses(self, outputs, models):
        """Loss of a network's outputs for each of some models, ``(n_taken,)``."""

    def loss(self, outputs, models):
        """Mean loss of a network's outputs for some models."""
        losses = self.losses(outputs, models)
        if self.weight is None:
            return losses.mean()
        weight = self.weight[models]
        return (losses * weight).sum() / weight.sum()

    @abstractmethod
    def choose_penalty(self, path, alphas):
        """Choose the penalty by leave-one-out.

        Parameters
        ----------
        path : RidgePath
        alphas : sequence of float

        Returns
        -------
        Penalty
        """

    def tune(self, path, penalty, alphas):
        """Choose what is left to choose, once the features are.

        Returns
        -------
        path : RidgePath
            With the targets that are fitted in the end.
        alpha : Tensor of shape (n_targets,)
        text_side : TextSide or None
        """
        return path, penalty.alpha, None


@dataclass(frozen=True)
class FittedTask(Task):
    """Targets that predictions should come near."""

    @abstractmethod
    def errors(self, path, predictions):
        """What each penalty is judged by, the smaller the better.

        Parameters
        ----------
        path : RidgePath
        predictions : Tensor of shape (n_alphas, n_models, n_targets)

        Returns
        -------
        Tensor of shape (n_alphas, n_targets)
        """

    def choose_penalty(self, path, alphas):
        alphas = torch.as_tensor(alphas, dtype=path.targets.dtype)
        alphas = alphas.to(path.targets.device)
        predictions = path.leave_one_out(alphas)
        errors = self.errors(path, predictions)
        best = errors.argmin(dim=0)  # (n_targets,)
        columns = torch.arange(len(best), device=best.device)
        chosen = predictions[best, :, columns].T
        return Penalty(
            alphas[best],
            chosen,
            self.score(chosen, path.shares),
            errors[best, columns].mean().item(),
        )


@dataclass(frozen=True)
class Labels(FittedTask):
    """Labels decided one by one, targets of -1 and 1: two classes, or label sets."""

    def _right(self, predictions, targets):
        return (predictions > 0) == (targets > 0)

    def is_told_by(self, models):
        """Whether no label that differs is one that all, or none, of them have."""
        signs = self.targets.cpu() > 0
        some = signs[models]
        varies = signs.any(dim=0) & ~signs.all(dim=0)
        return bool((some.any(dim=0) & ~some.all(dim=0))[varies].all())

    @property
    def rarity(self):
        in_class = (self.targets.cpu() > 0).double()
        return (in_class / in_class.sum(dim=0).clamp_min(1)).sum(dim=1)

    def score(self, predictions, shares=None, models=slice(None)):
        """Share of the labels that are right."""
        right = self._right(predictions, self.targets[models])
        right = right.to(predictions.dtype)
        share = right.mean() if shares is None else (shares @ right).mean()
        return min(share.item(), 1.0)  # shares sum to one but for rounding

    def losses(self, outputs, models):
        """Binary cross-entropy."""
        return functional.binary_cross_entropy_with_logits(
            outputs, (self.targets[models] > 0).to(outputs.dtype), reduction="none"
        ).mean(dim=1)

    def errors(self, path, predictions):
        """Minus the correlation of decisions and targets, one for all classes.

        How far the decisions are shrunk does not matter, as calibration undoes it.
        """
        means = torch.einsum("n,ant->at", path.shares, predictions)[:, None]
        deviations, targets = predictions - means, path.targets - path.target_mean
        shared = torch.einsum("n,ant,nt->a", path.shares, deviations, targets)
        lengths = torch.einsum("n,ant->a", path.shares, deviations.square()).sqrt()
        tiny = torch.finfo(lengths.dtype).tiny
        errors = -(shared / lengths.clamp_min(tiny))[:, None]  # (n_alphas, 1)
        return errors.expand(-1, path.targets.shape[1])


@dataclass(frozen=True)
class Classes(Labels):
    """One of several classes: the column of the largest decision."""

    def _right(self, predictions, targets):
        return (predictions.argmax(dim=1) == targets.argmax(dim=1))[:, None]

    def losses(self, outputs, models):
        """Cross-entropy."""
        classes = self.targets[models].argmax(dim=1)
        return functional.cross_entropy(outputs, classes, reduction="none")


@dataclass(frozen=True)
class Numbers(FittedTask):
    """Real targets, standardised."""

    def score(self, predictions, shares=None, models=slice(None)):
        """R^2, averaged over targets."""
        targets = self.targets[models]
        if shares is None:
            shares = torch.full_like(targets[:, 0], 1 / len(targets))
        residual = shares @ (targets - predictions).square()
        total = shares @ (targets - shares @ targets).square()
        scores = 1 - residual / total.clamp_min(torch.finfo(total.dtype).tiny)
        return scores.mean().item()

    def losses(self, outputs, models):
        """Half the squared error."""
        return (outputs - self.targets[models]).square().mean(dim=1) / 2

    def errors(self, path, predictions):
        """Mean squared error of each target."""
        squares = (predictions - path.targets).square()
        return torch.einsum("n,ant->at", path.shares, squares)


@dataclass(frozen=True)
class Names(Task):
    """One of many texts, by the nearest embedding; made by `Names.of`.

    A ridge predicts the embedding of a model's text, and what is tuned is naming the
    unseen: leave-one-out leaves all models of the same text out.

    Attributes
    ----------
    targets : Tensor of shape (n_models, at most N_TEXT_DIRECTIONS)
        Embeddings that views and layers are compared by.
    vectors : Tensor of shape (n_labels, d_text)
        float64, on the device that solves.
    labels : Tensor of int, shape (n_models,)
        Number of each model's text.
    n_components : int or None
        Dimensions of the embeddings; None: those of the text.
    """

    vectors: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    n_components: int | None = None

    @classmethod
    def of(cls, vectors, labels, n_components=None):
        """Name models by the texts of these vectors; see the attributes."""
        n_compared = min(n_components or N_TEXT_DIRECTIONS, N_TEXT_DIRECTIONS)
        side = fit_text_side(vectors, DEFAULT_POWER, n_compared)
        return cls(side.embed(vectors)[labels], None, vectors, labels, n_components)

    @property
    def n_outputs(self):
        return len(self.vectors)

    def take(self, models):
        numbers, labels = self.labels[models].unique(return_inverse=True)
        return Names.of(self.vectors[numbers], labels, self.n_components)

    def to(self, device, dtype):
        return replace(
            self,
            targets=self.targets.to(device, dtype),
            vectors=self.vectors.to(device, dtype),
            labels=self.labels.to(device),
        )

    def is_told_by(self, models):
        """Whether some models have all the texts."""
        return len(self.labels.cpu()[models].unique()) == len(self.vectors)

    def score(self, predictions, shares=None, models=slice(None)):
        """Share of the models that a network names rightly."""
        right = predictions.argmax(dim=1) == self.labels[models]
        return right.double().mean().item()

    def losses(self, outputs, models):
        """Cross-entropy over the texts."""
        return functional.cross_entropy(outputs, self.labels[models], reduction="none")

    def choose_penalty(self, path, alphas):
        """Choose the penalty that names models best, their texts left out whole."""
        alphas = torch.as_tensor(alphas[::2], dtype=path.targets.dtype)
        alphas = alphas.to(path.targets.device)
        embeddings = fit_text_side(
            self.vectors, DEFAULT_POWER, self.targets.shape[1]
        ).embed(self.vectors)
        predictions = path.leave_group_out(alphas, self.labels)
        scores = [
            self._score_naming(part, embeddings, DEFAULT_PENALTY)
            for part in unit_rows(predictions, dim=2)
        ]
        best = max(range(len(scores)), key=scores.__getitem__)
        accuracy, reciprocal_rank = scores[best]
        alpha = alphas[best].expand(predictions.shape[2])
        return Penalty(alpha, predictions[best], accuracy, -reciprocal_rank)

    def tune(self, path, penalty, alphas):
        """Choose whitening, hubness penalty and ridge penalty together."""
        alphas = torch.as_tensor(alphas, dtype=path.targets.dtype)
        alphas = alphas.to(path.targets.device)
        best = None
        for power in WHITENING_POWERS:
            side = fit_text_side(self.vectors, power, self.n_components)
            embeddings = side.embed(self.vectors)
            embedded = path.with_targets(embeddings[self.labels])
            left_out = unit_rows(embedded.leave_group_out(alphas, self.labels), dim=2)
            for hubness_penalty in HUBNESS_PENALTIES:
                for alpha, predictions in zip(alphas, left_out, strict=True):
                    score = self._score_naming(predictions, embeddings, hubness_penalty)
                    if best is None or score > best[0]:
                        side = replace(
                            side,
                            penalty=hubness_penalty,
                            predictions=predictions,
                            labels=self.labels,
                        )
                        best = score, embedded, alpha, side
        _, path, alpha, side = best
        return path, alpha.expand(path.targets.shape[1]), side

    def _score_naming(self, predictions, embeddings, penalty):
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
        # Sorted: what order the models come in must not decide between equal ranks.
        reciprocal = 1 / rank.sort().values
        return (rank == 1).double().mean().item(), reciprocal.mean().item()
