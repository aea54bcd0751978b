"""Ridge regression with an intercept, and its exact leave-one-out predictions."""

import torch

from .linalg import eigh_descending, fix_signs


class RidgePath:
    """Ridge solutions for every penalty from one eigendecomposition.

    Minimises ``sum_i w_i (y_i - b - phi_i^T B)^2 + alpha |B|^2`` over B and b, through
    the smaller of the primal ``(p, p)`` and dual ``(n, n)`` matrices.

    Parameters
    ----------
    features : Tensor of shape (n_models, p)
    targets : Tensor of shape (n_models, n_targets)
    sample_weight : Tensor of shape (n_models,), optional
    """

    def __init__(self, features, targets, sample_weight=None):
        n_models, n_features = features.shape
        if sample_weight is None:
            sample_weight = torch.ones_like(features[:, 0])
        # The leverage of the intercept. Without it the left-out target leaks through
        # the mean of the targets, and small penalties look perfect.
        self.shares = shares = sample_weight / sample_weight.sum()
        self.features, self.targets = features, targets
        self.feature_mean = shares @ features
        self.target_mean = shares @ targets
        self._roots = sample_weight.sqrt()[:, None]
        self._centred = (features - self.feature_mean) * self._roots
        centred_targets = (targets - self.target_mean) * self._roots
        if n_models <= n_features:
            eigenvalues, vectors = eigh_descending(self._centred @ self._centred.T)
            self.eigenvalues = eigenvalues.clamp_min(0)
            self.vectors = vectors  # (n_models, r)
        else:
            eigenvalues, vectors = eigh_descending(self._centred.T @ self._centred)
            # Directions without variance carry nothing, and would be divided by zero.
            keep = eigenvalues > eigenvalues.amax() * n_models * _eps(features)
            self.eigenvalues = eigenvalues[keep]
            self.vectors = (
                self._centred @ vectors[:, keep] / self.eigenvalues.sqrt()
            )  # (n_models, r)
        self._projected = self.vectors.T @ centred_targets  # (r, n_targets)

    def leave_one_out(self, alphas):
        """Predict each model by the ridge fitted on all the others, exactly.

        The residual over ``1 - H_ii``, with H the hat matrix, intercept included.

        Parameters
        ----------
        alphas : Tensor of shape (n_alphas,)

        Returns
        -------
        Tensor of shape (n_alphas, n_models, n_targets)
        """
        shrinkage = self.eigenvalues / (self.eigenvalues + alphas[:, None])
        shrunk = shrinkage[:, :, None] * self._projected  # (n_alphas, r, n_targets)
        fitted = self.vectors @ shrunk / self._roots + self.target_mean
        leverage = shrinkage @ self.vectors.square().T + self.shares
        freedom = (1 - leverage).clamp_min(_eps(fitted))  # (n_alphas, n_models)
        return self.targets - (self.targets - fitted) / freedom[:, :, None]

    def solve(self, alpha):
        """Solve for one penalty, or one for each target.

        Parameters
        ----------
        alpha : float or Tensor of shape (n_targets,)

        Returns
        -------
        coef : Tensor of shape (n_targets, p)
        intercept : Tensor of shape (n_targets,)
        """
        alpha = torch.as_tensor(alpha, dtype=self.eigenvalues.dtype)
        penalised = self.eigenvalues[:, None] + alpha.to(self.eigenvalues.device)
        dual = self.vectors @ (self._projected / penalised)
        coef = dual.T @ self._centred
        return coef, self.target_mean - coef @ self.feature_mean

    def principal_directions(self, n_components):
        """Leading principal directions of the (weighted) features, signs fixed.

        Returns
        -------
        Tensor of shape (at most n_components, p)
        """
        leading = self.eigenvalues[:n_components]
        floor = leading.amax() * len(self.vectors) * _eps(self.features)
        n_components = max(1, int((leading > floor).sum()))
        lengths = leading[:n_components].sqrt().clamp_min(_eps(self.features))
        products = self.vectors[:, :n_components].T @ self._centred
        return fix_signs(products / lengths[:, None])


def _eps(tensor):
    return torch.finfo(tensor.dtype).eps
