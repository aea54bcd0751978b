"""What is predicted: how a prediction is scored, and what a network minimises."""

import torch
from torch.nn import functional

TASKS = ("binary", "multiclass", "multilabel", "regression")


def score(task, predictions, targets, shares=None):
    """Score predictions: label accuracy, or R^2 averaged over targets.

    Parameters
    ----------
    task : one of TASKS
    predictions, targets : Tensor of shape (n_models, n_targets)
        Classification targets are -1 and 1, one column a class (one column in all for
        two classes).
    shares : Tensor of shape (n_models,), optional
        Weights that sum to one.

    Returns
    -------
    float
    """
    if shares is None:
        shares = torch.full_like(targets[:, 0], 1 / len(targets))
    if task == "regression":
        residual = shares @ (targets - predictions).square()
        total = shares @ (targets - shares @ targets).square()
        scores = 1 - residual / total.clamp_min(torch.finfo(total.dtype).tiny)
        return scores.mean().item()
    if task == "multiclass":
        right = predictions.argmax(dim=1) == targets.argmax(dim=1)
    else:
        right = (predictions > 0) == (targets > 0)
    return (shares @ right.to(targets.dtype)).mean().item()


def loss(task, outputs, targets, sample_weight=None):
    """Mean loss of a network's outputs: cross-entropy, or half the squared error."""
    if task == "regression":
        losses = (outputs - targets).square().mean(dim=1) / 2
    elif task == "multiclass":
        losses = functional.cross_entropy(
            outputs, targets.argmax(dim=1), reduction="none"
        )
    else:
        losses = functional.binary_cross_entropy_with_logits(
            outputs, (targets > 0).to(outputs.dtype), reduction="none"
        ).mean(dim=1)
    if sample_weight is None:
        return losses.mean()
    return (losses * sample_weight).sum() / sample_weight.sum()
