"""Ridge regression with an intercept, and its exact leave-one-out predictions.

Minimises ``sum_i w_i (y_i - b - phi_i^T B)^2 + alpha |B|^2`` over B and b.
"""

from copy import copy

import torch

from ..linalg import add_gram, eigh_descending, fix_signs, mirror

# Features are centred and widened to float64 so many rows or columns at a time: a copy
# of all would take more memory than anything else in a fit.
AT_ONCE = 512
# Share of the mean variance below which a direction is no part of a span.
SPAN_TOLERANCE = 1e-9


class RidgePath:
    """Ridge solutions for every penalty from one eigendecomposition.

    Through the smaller of the primal ``(p, p)`` and dual ``(n, n)`` matrices.

    Parameters
    ----------
    features : Tensor of shape (n_models, p) or None
        None leaves it at `leave_one_out`; see `with_features`.
    targets : Tensor of shape (n_models, n_targets)
    sample_weight : Tensor of shape (n_models,), optional
    kernel : Tensor of shape (n_models, n_models), optional
        Of these features, from `centred_kernel`, where it is at hand; then the dual is
        solved.

    Attributes
    ----------
    shares : Tensor of shape (n_models,)
        Weights of the models, which sum to one.
    eigenvalues : Tensor of shape (r,)
    vectors : Tensor of shape (n_models, r)
    """

    def __init__(self, features, targets, sample_weight=None, kernel=None):
        self.features = features
        # The leverage of the intercept. Without it the left-out target leaks through
        # the mean of the targets, and small penalties look perfect.
        self.shares, self._roots = _shares_and_roots(targets, sample_weight)
        self.targets = targets
        n_models = len(targets)
        if kernel is None and n_models <= features.shape[1]:
            kernel = centred_kernel(features, sample_weight)
        if kernel is not None:
            eigenvalues, vectors = eigh_descending(kernel)
        else:
            eigenvalues, vectors = eigh_descending(self._moments())
        # Directions without variance, such as the mean's own, are rounding errors.
        n_kept = int((eigenvalues > eigenvalues[0] * n_models * _eps(targets)).sum())
        self.eigenvalues = eigenvalues[:n_kept]  # (r,)
        vectors = vectors[:, :n_kept]
        if kernel is None:
            directions = vectors.div_(self.eigenvalues.sqrt())
            vectors = targets.new_empty(n_models, n_kept)
            parts = zip(vectors.split(AT_ONCE), self._centred_rows(), strict=True)
            for part, rows in parts:
                torch.matmul(rows, directions, out=part)
        self.vectors = vectors  # (n_models, r)

    @property
    def target_mean(self):
        return self.shares @ self.targets

    def with_targets(self, targets):
        """The ridge of the same features on other targets, ``(n_models, ...)``."""
        other = copy(self)
        other.targets = targets
        return other

    def with_features(self, features):
        """The same ridge, where it was fitted on the kernel of these features."""
        other = copy(self)
        other.features = features
        return other

    @property
    def feature_mean(self):
        return mean_of(self.features, self.shares)

    def _moments(self):
        n_features = self.features.shape[1]
        total = self.targets.new_zeros(n_features, n_features)
        for rows in self._centred_rows():
            add_gram(total, rows)
        return mirror(total)

    def _centred_rows(self):
        """Centred features, times the roots of the weights, some models at a time."""
        mean = self.feature_mean
        parts = self.features.split(AT_ONCE), self._roots.split(AT_ONCE)
        for rows, roots in zip(*parts, strict=True):
            yield (rows.to(mean) - mean).mul_(roots)

    def _centred_parts(self):
        """The same, some columns at a time."""
        return centred_parts(self.features, self.shares, self._roots)

    def _centred_targets(self):
        return (self.targets - self.target_mean) * self._roots

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
        shrinkage, fitted = self._fitted(alphas)
        squares = (rows.square().T for rows in self.vectors.split(AT_ONCE))
        leverage = torch.cat([shrinkage @ part for part in squares], dim=1)
        leverage += self.shares
        freedom = (1 - leverage).clamp_min(_eps(fitted))  # (n_alphas, n_models)
        return self.targets - (self.targets - fitted) / freedom[:, :, None]

    def leave_group_out(self, alphas, groups):
        """Predict each model by the ridge fitted on all other groups, exactly.

        The residuals of a group times ``(I - H_gg)^-1``, its block of the hat matrix.

        Parameters
        ----------
        alphas : Tensor of shape (n_alphas,)
        groups : Tensor of int, shape (n_models,)
            Two groups at least.

        Returns
        -------
        Tensor of shape (n_alphas, n_models, n_targets)
        """
        shrinkage, fitted = self._fitted(alphas)
        predictions = torch.empty_like(fitted)
        _, number, counts = groups.unique(return_inverse=True, return_counts=True)
        order = number.argsort(stable=True)
        starts = counts.cumsum(0) - counts
        total = self._roots.square().sum()
        for size in counts.unique().tolist():
            where = starts[counts == size][:, None] + torch.arange(
                size, device=order.device
            )
            members = order[where]  # (n_groups, size)
            rows, roots = self.vectors[members], self._roots[members]
            identity = torch.eye(size, dtype=rows.dtype, device=rows.device)
            # One penalty at a time: blocks may be as large as all models.
            for i, shrunk in enumerate(shrinkage):
                hat = (rows * shrunk) @ rows.mT + roots @ roots.mT / total
                freedom = identity * (1 + _eps(rows)) - hat  # (n_groups, size, size)
                residuals = (self.targets[members] - fitted[i, members]) * roots
                left_out = torch.linalg.solve(freedom, residuals) / roots
                predictions[i, members] = self.targets[members] - left_out
        return predictions

    def _fitted(self, alphas):
        shrinkage = self.eigenvalues / (self.eigenvalues + alphas[:, None])
        projected = self.vectors.T @ self._centred_targets()  # (r, n_targets)
        # All penalties side by side in one product, (r, n_alphas, n_targets).
        shrunk = shrinkage.T[:, :, None] * projected[:, None, :]
        fitted = (self.vectors @ shrunk.flatten(1)).unflatten(1, shrunk.shape[1:])
        fitted = fitted / self._roots[:, :, None] + self.target_mean
        return shrinkage, fitted.transpose(0, 1)

    def _dual(self, alpha):
        alpha = torch.as_tensor(alpha, dtype=self.eigenvalues.dtype)
        penalised = self.eigenvalues[:, None] + alpha.to(self.eigenvalues.device)
        projected = self.vectors.T @ self._centred_targets()  # (r, n_targets)
        return self.vectors @ (projected / penalised)

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
        dual = self._dual(alpha).T
        coef = torch.cat([dual @ part for part in self._centred_parts()], dim=1)
        return coef, self.target_mean - coef @ self.feature_mean

    def principal_directions(self, n_components, precision):
        """Leading principal directions of the (weighted) features, signs fixed.

        Parameters
        ----------
        n_components : int
        precision : float
            Share of the largest variance below which a direction is noise: the
            machine precision that the features were computed in.

        Returns
        -------
        Tensor of shape (at most n_components, p)
        """
        leading = self.eigenvalues[:n_components]
        leading = leading[leading > precision * self.eigenvalues[:1]]
        if not len(leading):
            # Models without variance: one direction, so that there is one to return.
            return torch.zeros_like(self.features[:1])
        vectors = self.vectors[:, : len(leading)]
        directions = [vectors.T @ part for part in self._centred_parts()]
        directions = torch.cat(directions, dim=1).div_(leading.sqrt()[:, None])
        return fix_signs(directions)


def centred_kernel(features, sample_weight=None):
    """Inner products of centred features, times the roots of the weights, in float64.

    Returns
    -------
    Tensor of shape (n_models, n_models)
    """
    shares, roots = _shares_and_roots(features[:, :0].double(), sample_weight)
    total = shares.new_zeros(len(features), len(features))
    for part in centred_parts(features, shares, roots):
        add_gram(total, part.T)
    return mirror(total)


def centred_span(features, sample_weight=None):
    """Orthonormal rows that span the centred features of models.

    By a Cholesky factorisation of their kernel. Features that depend on others get
    rows that are nearly zero.

    Returns
    -------
    mean : Tensor of shape (p,)
    directions : Tensor of shape (n_models, p)
        In the dtype of the features.
    """
    shares, roots = _shares_and_roots(features[:, :0].double(), sample_weight)
    kernel = centred_kernel(features, sample_weight)
    variances = kernel.diagonal()
    variances += (SPAN_TOLERANCE * variances.mean()).clamp_min(_eps(kernel))
    factor = torch.linalg.cholesky(kernel)
    directions = torch.empty_like(features)
    columns = directions.split(AT_ONCE, dim=1)
    parts = zip(columns, centred_parts(features, shares, roots), strict=True)
    for some, part in parts:
        some.copy_(torch.linalg.solve_triangular(factor, part, upper=False))
    return mean_of(features, shares), directions


def mean_of(features, shares):
    """Weighted mean of models, in the dtype of the weights, ``(p,)``."""
    columns = features.split(AT_ONCE, dim=1)
    return torch.cat([shares @ part.to(shares) for part in columns])


def centred_parts(features, shares, roots):
    """Yield centred features in the dtype of the shares, some columns at a time."""
    for columns in features.split(AT_ONCE, dim=1):
        columns = columns.to(shares)
        yield (columns - shares @ columns).mul_(roots)


def _shares_and_roots(features, sample_weight):
    if sample_weight is None:
        sample_weight = features.new_ones(len(features))
    # A weight of zero would be divided by; one this small changes no digit.
    sample_weight = sample_weight.clamp_min(sample_weight.amax() * 1e-12)
    return sample_weight / sample_weight.sum(), sample_weight.sqrt()[:, None]


def _eps(tensor):
    return torch.finfo(tensor.dtype).eps
