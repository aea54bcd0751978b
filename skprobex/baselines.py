"""Simpler descriptions of a layer, which a method for weights has to beat."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import entr
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.pipeline import Pipeline
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from ._base import all_or_nothing
from ._reading import ReadsWeights
from ._registry import saved
from ._typing import Numbers, Self
from .probing.batches import as_dense
from .saving import Saveable

__all__ = [
    "FlatDeltas",
    "SpectralStatistics",
    "WeightStatistics",
    "make_dense_expert",
]


def _dense_batches(weights):
    """Yield batches ``(b, d_out, d_in)``, low-rank products multiplied out."""
    for batch in weights.batches(torch.device("cpu")):
        yield as_dense(batch)


def _check_range(rows):
    """Refuse what has left the range of its dtype; name the first model."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise ValueError(
            f"The weights of model {bad[0]} of W are too large for {rows.dtype}: "
            "divide all weights by one number, or pass float64."
        )
    return rows


class _WeightsTransformer(
    Saveable,
    ReadsWeights,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """What the transformers below share: the input they take and their tags."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class _Statistics(_WeightsTransformer):
    """Named numbers of each model by itself: nothing is learnt from the others."""

    @all_or_nothing
    def fit(self, X: Numbers, y: Any = None) -> Self:
        """Remember the shape of the layer.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_models, d_out, d_in)
            One layer of each model; also ``(n_models, d)``, one 1-D weight per row,
            and convolution kernels ``(n_models, out, in, kh, kw)``.
        y : Ignored
            Present for consistency of the interface.

        Returns
        -------
        self : object
            The fitted transformer.
        """
        weights = self._read_layer(X, reset=True)
        for _ in _dense_batches(weights):
            pass  # reading a batch is what finds NaN and infinity
        return self

    def transform(self, X: Numbers) -> np.ndarray:
        """Compute the statistics of each model.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_models, d_out, d_in)
            The same layer of any models.

        Returns
        -------
        X_out : ndarray of shape (n_models, n_statistics)
            Float64 if X is, else float32.
        """
        check_is_fitted(self)
        weights = self._read_layer(X, reset=False)
        with np.errstate(over="ignore", invalid="ignore"):
            rows = [self._describe(batch.numpy()) for batch in _dense_batches(weights)]
        return _check_range(np.concatenate(rows))

    def get_feature_names_out(
        self, input_features: ArrayLike | None = None
    ) -> np.ndarray:
        """Name the statistics.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Only checked against the names seen in `fit`.

        Returns
        -------
        names : ndarray of str
            One name per column of the output.
        """
        super().get_feature_names_out(input_features)  # checks input_features
        return np.array(self._names, dtype=object)

    @property
    def _n_features_out(self):
        return len(self._names)


@saved
class WeightStatistics(_Statistics):
    """Mean, variance and five percentiles of a layer's weights.

    These seven numbers are the features of StatNN [1]_: mean, variance, and the 0th,
    25th, 50th, 75th and 100th percentiles. They do not change when the weights of a
    layer are reordered, so they carry nothing about directions.

    Attributes
    ----------
    weight_shape_ : tuple of (int, int)
        The layer's shape, ``(d_out, d_in)``.
    n_features_in_ : int
        The layer's output dimension, d_out.
    feature_names_in_ : ndarray of shape (d_out,)
        Column names, where `fit` saw a data frame of 1-D weights.

    See Also
    --------
    SpectralStatistics : Five statistics of the layer as a matrix.

    References
    ----------
    .. [1] T. Unterthiner, D. Keysers, S. Gelly, O. Bousquet, I. Tolstikhin,
       "Predicting Neural Network Accuracy from Weights", arXiv 2002.11448, 2020.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex.baselines import WeightStatistics
    >>> W = np.array([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 4.0], [4.0, 4.0]]])
    >>> WeightStatistics().fit_transform(W)
    array([[1.5 , 1.25, 0.  , 0.75, 1.5 , 2.25, 3.  ],
           [4.  , 0.  , 4.  , 4.  , 4.  , 4.  , 4.  ]])
    """

    _percentiles = (0, 25, 50, 75, 100)
    _names = ("mean", "variance", *(f"percentile_{q}" for q in _percentiles))

    def _describe(self, batch):
        flat = batch.reshape(len(batch), -1)  # (n_models, d_out * d_in)
        percentiles = np.percentile(flat, self._percentiles, axis=1)
        moments = [flat.mean(axis=1), flat.var(axis=1)]
        return np.stack([*moments, *percentiles], axis=1).astype(flat.dtype)


@saved
class SpectralStatistics(_Statistics):
    r"""Size, concentration and shape of a layer's singular values.

    With singular values :math:`s_1 \ge s_2 \ge \ldots` of a layer and their shares
    :math:`p_i = s_i^2 / \sum_j s_j^2`:

    - ``spectral_norm``, the largest, :math:`s_1`;
    - ``frobenius_norm``, :math:`(\sum_i s_i^2)^{1/2}`;
    - ``energy_concentration``, the share of the largest, :math:`p_1`;
    - ``spectral_entropy``, :math:`-\sum_i p_i \log p_i`, in nats;
    - ``kurtosis``, the excess kurtosis of the weights themselves, zero for a normal
      distribution.

    A layer of zeros has concentration and entropy zero; one whose weights are all
    equal has kurtosis zero.

    Attributes
    ----------
    weight_shape_ : tuple of (int, int)
        The layer's shape, ``(d_out, d_in)``.
    n_features_in_ : int
        The layer's output dimension, d_out.
    feature_names_in_ : ndarray of shape (d_out,)
        Column names, where `fit` saw a data frame of 1-D weights.

    See Also
    --------
    WeightStatistics : Seven statistics of the weights in any order.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex.baselines import SpectralStatistics
    >>> W = np.stack([np.diag([3.0, 4.0]), np.ones((2, 2))])
    >>> SpectralStatistics().fit_transform(W).round(2)
    array([[ 4.  ,  5.  ,  0.64,  0.65, -1.85],
           [ 2.  ,  2.  ,  1.  ,  0.  ,  0.  ]])
    """

    _names = (
        "spectral_norm",
        "frobenius_norm",
        "energy_concentration",
        "spectral_entropy",
        "kurtosis",
    )

    def _describe(self, batch):
        singular = np.linalg.svd(batch, compute_uv=False)  # (n_models, n_singular)
        top = singular[:, 0]
        # Relative to the largest, so that squares of tiny weights do not underflow.
        relative = singular / np.where(top > 0, top, 1)[:, None]
        energy = (relative**2).sum(axis=1)
        shares = relative**2 / np.where(top > 0, energy, 1)[:, None]
        columns = [
            top,
            top * np.sqrt(energy),
            shares[:, 0],
            entr(shares).sum(axis=1),
            _excess_kurtosis(batch.reshape(len(batch), -1)),
        ]
        return np.stack(columns, axis=1).astype(batch.dtype)


def _excess_kurtosis(flat):
    largest = np.abs(flat).max(axis=1, keepdims=True)
    # So that fourth powers stay in range.
    flat = flat / np.where(largest > 0, largest, 1)
    mean = flat.mean(axis=1, keepdims=True)
    deviation = flat - mean
    std = np.sqrt((deviation**2).mean(axis=1, keepdims=True))
    # What equal weights deviate by is rounding; its kurtosis would be noise.
    is_constant = std <= 8 * np.finfo(flat.dtype).eps * np.abs(mean)
    standard = deviation / np.where(is_constant, 1, std)
    return np.where(is_constant[:, 0], 0, (standard**4).mean(axis=1) - 3)


@saved
class FlatDeltas(_WeightsTransformer):
    r"""All entries of a layer's delta in one row, on a common scale.

    With the training models' weights :math:`W_i` and their mean :math:`C`, model i
    becomes :math:`\mathrm{vec}(W_i - C) / s`, where :math:`s^2` is the mean of
    :math:`\|W_i - C\|_F^2` over the training models. One scale for all keeps what the
    length of a delta says, and makes penalties mean the same for every layer.

    Attributes
    ----------
    center_ : ndarray of shape (d_out, d_in)
        Mean of the training models.
    scale_ : float
        Root mean square Frobenius norm of the training models' deltas; one where
        all models are equal.
    weight_shape_ : tuple of (int, int)
        The layer's shape, ``(d_out, d_in)``.
    n_features_in_ : int
        The layer's output dimension, d_out.
    feature_names_in_ : ndarray of shape (d_out,)
        Column names, where `fit` saw a data frame of 1-D weights.

    See Also
    --------
    make_dense_expert : Ridge regression on these rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex.baselines import FlatDeltas
    >>> W = np.array([[[3.0, 1.0], [1.0, 3.0]], [[1.0, 3.0], [3.0, 1.0]]])
    >>> FlatDeltas().fit_transform(W)
    array([[ 0.5, -0.5, -0.5,  0.5],
           [-0.5,  0.5,  0.5, -0.5]])
    """

    @all_or_nothing
    def fit(self, X: Numbers, y: Any = None) -> Self:
        """Learn the centre and the scale.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_models, d_out, d_in)
            One layer of each model; also ``(n_models, d)``, one 1-D weight per row,
            and convolution kernels ``(n_models, out, in, kh, kw)``.
        y : Ignored
            Present for consistency of the interface.

        Returns
        -------
        self : object
            The fitted transformer.
        """
        weights = self._read_layer(X, reset=True)
        total = sum(batch.double().sum(0) for batch in _dense_batches(weights))
        center = total / len(weights)
        energy = sum(
            (batch.double() - center).square().sum()
            for batch in _dense_batches(weights)
        )
        scale = float((energy / len(weights)) ** 0.5)
        # Equal weights differ from their mean by rounding alone.
        is_constant = scale <= 8 * np.finfo(float).eps * float(center.norm())
        self.center_ = center.numpy()
        self.scale_ = 1.0 if is_constant else scale
        self._n_features_out = center.numel()
        return self

    def transform(self, X: Numbers) -> np.ndarray:
        """Centre, scale and flatten.

        Parameters
        ----------
        X : array-like or Tensor of shape (n_models, d_out, d_in)
            The same layer of any models.

        Returns
        -------
        X_out : ndarray of shape (n_models, d_out * d_in)
            Float64 if X is, else float32.
        """
        check_is_fitted(self)
        weights = self._read_layer(X, reset=False)
        # The batches know the layer's dtype; the centre follows them.
        rows = []
        for batch in _dense_batches(weights):
            array = batch.numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                deltas = (array - self.center_.astype(array.dtype)) / self.scale_
            rows.append(deltas.reshape(len(deltas), -1))
        return _check_range(np.concatenate(rows))


def make_dense_expert(
    task: Literal["classification", "regression"] = "classification",
    alphas: Sequence[float] | np.ndarray | None = None,
) -> Pipeline:
    """Ridge regression on every entry of a layer's delta.

    The ProbeX paper [1]_ calls a linear model on all weights of a layer the *dense
    expert*, and ProbeX a low-rank form of it. The penalty is chosen by scikit-learn's
    leave-one-out, in the dual wherever there are fewer models than weights: the
    largest matrix is ``(n_models, n_models)``, never ``(d_out * d_in)`` squared.

    Parameters
    ----------
    task : {"classification", "regression"}, default="classification"
        What y holds. Classification takes labels or, for several labels per model,
        an indicator matrix; regression takes one or several real targets.
    alphas : array-like of float, default=None
        Ridge penalties to choose from. Deltas have a mean squared norm of one, so
        the default, 13 values from 1e-4 to 100, suits any layer.

    Returns
    -------
    pipeline : Pipeline
        Steps ``"deltas"``, a `FlatDeltas`, and ``"ridge"``, a `RidgeClassifierCV` or
        a `RidgeCV`.

    Raises
    ------
    ValueError
        If `task` is neither.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights
       using Tree Experts", CVPR 2025, arXiv 2410.13569.

    Examples
    --------
    >>> import numpy as np
    >>> from skprobex.baselines import make_dense_expert
    >>> rng = np.random.default_rng(0)
    >>> W = rng.standard_normal((60, 4, 4))
    >>> y = W[:, 0, 0] > 0
    >>> bool(make_dense_expert().fit(W[:40], y[:40]).score(W[40:], y[40:]) > 0.7)
    True
    """
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV

    ridges = {"classification": RidgeClassifierCV, "regression": RidgeCV}
    if task not in ridges:
        raise ValueError(f"task must be one of {sorted(ridges)}, got {task!r}.")
    alphas = np.logspace(-4, 2, 13) if alphas is None else alphas
    if not np.size(alphas):
        raise ValueError("alphas is empty: expected one penalty at least.")
    return Pipeline([("deltas", FlatDeltas()), ("ridge", ridges[task](alphas=alphas))])
