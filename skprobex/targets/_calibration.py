"""Decision values to log-odds: fitted on leave-one-out predictions."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

# In units of the decisions' mean absolute value.
MIN_SLOPE = 1e-2


def fit_sigmoids(decisions, targets, sample_weight=None):
    """Fit the affine maps from decision values to log-odds, column by column.

    Parameters
    ----------
    decisions, targets : ndarray of shape (n_models, n_targets)
        Targets are -1 and 1.
    sample_weight : ndarray of shape (n_models,), optional

    Returns
    -------
    slope, offset : ndarray of shape (n_targets,)
    """
    if sample_weight is None:
        sample_weight = np.ones(len(decisions))
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
    columns = np.column_stack([decisions / spread, np.ones_like(decisions)])
    start = np.array([1.0, np.log((n_positive + 1) / (n_negative + 1))])
    slope, offset = _newton(columns, targets, shares, start)
    if slope < MIN_SLOPE:
        # The best slope allowed: the loss is convex.
        fixed = MIN_SLOPE * columns[:, 0]
        (offset,) = _newton(columns[:, 1:], targets, shares, start[1:], fixed)
        slope = MIN_SLOPE
    return slope / spread, offset


def _newton(columns, targets, shares, parameters, fixed=0.0):
    """Minimise the mean logistic loss to the last digits, by damped Newton steps.

    To the last digits, because two fits that differ in their rounding only must give
    the same probabilities.
    """

    def evaluate(parameters):
        logits = columns @ parameters + fixed
        return logits, shares @ (np.logaddexp(0, logits) - targets * logits)

    logits, loss = evaluate(parameters)
    for _ in range(100):
        positive = expit(logits)
        gradient = columns.T @ (shares * (positive - targets))
        curvature = columns.T * (shares * positive * (1 - positive)) @ columns
        curvature += 1e-12 * np.eye(len(parameters))
        step = np.linalg.solve(curvature, gradient)
        while True:
            logits, new_loss = evaluate(parameters - step)
            if new_loss <= loss + 1e-15 or np.abs(step).max() < 1e-15:
                break
            step = step / 2
        parameters, loss = parameters - step, new_loss
        if np.abs(step).max() < 1e-13:
            break
    return parameters


def fit_temperature(decisions, classes, sample_weight=None):
    """Temperature scaling (Guo et al., 2017): ``P = softmax(slope * decisions)``.

    One slope for all classes: the predicted class stays the same.

    Parameters
    ----------
    decisions : ndarray of shape (n_models, n_classes)
    classes : ndarray of int, shape (n_models,)
    sample_weight : ndarray of shape (n_models,), optional

    Returns
    -------
    float
        The slope.
    """
    if sample_weight is None:
        sample_weight = np.ones(len(decisions))
    n_samples, n_classes = decisions.shape
    # A small vote for every other class keeps the slope finite.
    smoothing = 1 / (sample_weight.sum() + n_classes)
    targets = np.full(decisions.shape, smoothing)
    targets[np.arange(n_samples), classes] += 1 - n_classes * smoothing
    spread = decisions.std() or 1.0
    scaled = decisions / spread

    def derivative(log_slope):
        residuals = softmax(np.exp(log_slope) * scaled, axis=1) - targets
        return sample_weight @ (residuals * scaled).sum(axis=1)

    # The loss is convex in the slope: its derivative changes sign at most once.
    low, high = -7.0, 7.0
    if derivative(low) >= 0:
        log_slope = low
    elif derivative(high) <= 0:
        log_slope = high
    else:
        log_slope = brentq(derivative, low, high, xtol=1e-14)
    return np.exp(log_slope) / spread
