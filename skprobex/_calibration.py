"""Decision values to log-odds: fitted on leave-one-out predictions."""

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_softmax

# In units of the decisions' mean absolute value.
MIN_SLOPE = 1e-2


def fit_log_odds(task, decisions, targets, sample_weight=None):
    """Fit the affine map from decision values to log-odds.

    Parameters
    ----------
    task : {"binary", "multilabel", "multiclass"}
    decisions, targets : ndarray of shape (n_models, n_targets)
        Targets are -1 and 1.
    sample_weight : ndarray of shape (n_models,), optional

    Returns
    -------
    slope, offset : ndarray of shape (n_targets,)
    """
    if sample_weight is None:
        sample_weight = np.ones(len(decisions))
    n_targets = decisions.shape[1]
    if task == "multiclass":
        slope = _fit_temperature(decisions, targets.argmax(axis=1), sample_weight)
        return np.full(n_targets, slope), np.zeros(n_targets)
    columns = zip(decisions.T, targets.T > 0, strict=True)
    fitted = [_fit_sigmoid(*column, sample_weight) for column in columns]
    return tuple(np.array(fitted).T)


def _fit_sigmoid(decisions, is_positive, sample_weight):
    """Platt's sigmoid (1999): ``P(positive) = sigmoid(slope * decision + offset)``.

    The targets are smoothed as in the paper, so that separable decisions get a finite
    slope. The slope is always positive: the order of the decisions is kept, also where
    leave-one-out found nothing in it.
    """
    n_positive = sample_weight[is_positive].sum()
    n_negative = sample_weight[~is_positive].sum()
    targets = np.where(
        is_positive, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2)
    )
    shares = sample_weight / sample_weight.sum()
    spread = np.abs(decisions).mean() or 1.0
    scaled = decisions / spread

    def objective(parameters):
        slope, offset = parameters
        logits = slope * scaled + offset
        losses = np.logaddexp(0, logits) - targets * logits
        residuals = shares * (expit(logits) - targets)
        return shares @ losses, np.array([residuals @ scaled, residuals.sum()])

    start = [1.0, np.log((n_positive + 1) / (n_negative + 1))]
    result = minimize(
        objective,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=[(MIN_SLOPE, None), (None, None)],
    )
    slope, offset = result.x
    return slope / spread, offset


def _fit_temperature(decisions, classes, sample_weight):
    """Temperature scaling (Guo et al., 2017): ``P = softmax(slope * decisions)``.

    One slope for all classes: the predicted class stays the same.
    """
    n_samples, n_classes = decisions.shape
    # A small vote for every other class keeps the slope finite.
    smoothing = 1 / (n_samples + n_classes)
    targets = np.full(decisions.shape, smoothing)
    targets[np.arange(n_samples), classes] += 1 - n_classes * smoothing
    spread = decisions.std() or 1.0

    def objective(log_slope):
        logits = np.exp(log_slope) * decisions / spread
        losses = -(targets * log_softmax(logits, axis=1)).sum(axis=1)
        return sample_weight @ losses / sample_weight.sum()

    result = minimize_scalar(objective, bounds=(-7, 7), method="bounded")
    return np.exp(result.x) / spread
