"""LayerFusion."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Tags, check_consistent_length

from .._base import BaseExpert, all_or_nothing
from .._registry import saved
from .._sklearn import Interval, _fit_context
from .._typing import Center, Device, RandomState, Self, Views
from ..probing.device import as_array, to_arrays
from ..probing.ridge.expert import fit_ridge
from ..solvers._ridge import closed_form_attributes
from ..targets._labels import encode_task
from ..weights import (
    Layers,
    WeightsLike,
    holds_several,
    layer_names,
    take_layers,
    unwrap_jungle,
)
from ._patterns import match_layers


@saved
class LayerFusion(BaseExpert):
    """Join what several layers tell about models, as features.

    The views of every layer are probed as `ProbeXClassifier` probes one, and scaled to
    unit spread. By exact leave-one-out of a ridge on them, they are ranked, added one
    by one where the sum gains, and made louder or softer. What is left is one feature
    vector for each model, for whatever learner comes next in a pipeline.

    `ProbeXClassifier`, `ProbeXRegressor` and `ProbeXEmbedder` do the same by themselves
    when W holds several layers; this is the step on its own, with more to set.

    Parameters
    ----------
    layers : str, list of str or None, default=None
        Names or patterns (``"*.attention.*"``) of the layers to consider. None: all
        that every model has in one shape.
    n_layers : int or None, default=None
        Layers to use at most. None: as many as help.
    views : "auto" or tuple of str, default="auto"
        As in `ProbeXClassifier`. ``"auto"`` considers every view of every layer; with
        names, these views of each layer are joined.
    n_probes : int, default=64
        Probes per view and side (r_U in the paper [1]_).
    center : "auto", "robust", "mean", None or dict of str to array, default="auto"
        As in `ProbeXClassifier`; a dict gives each layer's base.
    normalize : "auto" or bool, default="auto"
        As in `ProbeXClassifier`, chosen for each layer.
    alphas : array-like of float, default=None
        Ridge penalties that leave-one-out may choose from. None: 15 values from 1e-4
        to 1e3.
    n_components : int or None, default=None
        Principal directions of the joined features to return. None: the features
        themselves.
    device : str, default="auto"
        As in `ProbeXClassifier`.
    random_state : int, RandomState instance or None, default=None
        Draws the sketch of large layers.
    verbose : int, default=0
        1 shows a progress bar on stderr.

    Attributes
    ----------
    layers_ : list of str
        The layers in use.
    layer_scores_ : dict of str to float
        Leave-one-out score that each layer considered reaches with its best view: label
        accuracy, or R^2.
    layer_weights_ : dict of str to float
        Share of each layer in use in the squared norm of the features; the sum is one.
    view_scores_ : dict of str to dict
        For each layer considered, the leave-one-out score of each of its views.
    views_, normalize_, center_, probes_ : dict
        By layer in use, as `ProbeXClassifier` has them.
    outliers_ : ndarray of int
        Models far from all others in any layer, by position: they were left out.
    weight_shape_ : dict of str to tuple
        Shape ``(d_out, d_in)`` of each layer considered.
    alpha_ : float or ndarray of shape (n_targets,)
        Ridge penalty chosen.
    expert_ : object
        All fitted state; the attributes above are views of it.

    See Also
    --------
    LayerSearchCV : Find the one best layer, for any estimator.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights using
       Tree Experts", CVPR 2025, arXiv 2410.13569.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skprobex.datasets import make_model_tree
    >>> from skprobex.layers import LayerFusion
    >>> W, y = make_model_tree(
    ...     90, (16, 12), view="xtxu", random_state=0, return_X_y=True
    ... )
    >>> layers = {"first.weight": W, "second.weight": 0 * W}
    >>> fusion = LayerFusion(n_components=8).fit(layers, y)
    >>> fusion.layers_
    ['first.weight']
    >>> fusion.transform(layers).shape
    (90, 8)
    """

    _parameter_constraints = {
        "layers": [None, str, list, tuple],
        "n_layers": [None, Interval(Integral, 1, None, closed="left")],
        **BaseExpert._parameter_constraints,
    }

    def __init__(
        self,
        layers: str | Sequence[str] | None = None,
        n_layers: int | None = None,
        *,
        views: Views = "auto",
        n_probes: int = 64,
        center: Center = "auto",
        normalize: bool | Literal["auto"] = "auto",
        alphas: Sequence[float] | np.ndarray | None = None,
        n_components: int | None = None,
        device: Device = "auto",
        random_state: RandomState = None,
        verbose: int = 0,
    ) -> None:
        self.layers = layers
        self.n_layers = n_layers
        self.views = views
        self.n_probes = n_probes
        self.center = center
        self.normalize = normalize
        self.alphas = alphas
        self.n_components = n_components
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, W: Layers, y: ArrayLike) -> Self:
        """Choose layers and views, and how loud each is.

        Parameters
        ----------
        W : ModelCollection or dict of str to array-like
            Several layers of the same models, by name.
        y : array-like of shape (n_models,) or (n_models, n_outputs)
            Labels, an indicator matrix of several, or real numbers.

        Returns
        -------
        LayerFusion
            The fitted transformer itself.

        Raises
        ------
        TypeError
            If W is one layer.
        ValueError
            If no layer is usable, or a pattern matches none; what `ProbeXClassifier`
            refuses.
        """
        W = unwrap_jungle(W)
        if not holds_several(W):
            raise TypeError(
                "LayerFusion needs several layers, a ModelCollection or a dict of "
                f"weights by layer name, got {type(W).__name__}."
            )
        W = take_layers(W, match_layers(layer_names(W), self.layers))
        layers = self._read(W, reset=True)
        task = encode_task(y, type(self).__name__)
        check_consistent_length(next(iter(layers.values())), y)
        problem = self._pose(layers, task, n_layers=self.n_layers)
        with self._progress(problem.n_decomposed, "model") as bar:
            expert = to_arrays(fit_ridge(problem, bar.update))
        weights = {layer.name: float(sum(layer.shares)) for layer in expert.layers}
        self._publish(
            expert,
            layer_weights_=weights,
            outliers_=np.flatnonzero(~as_array(problem.kept)),
            **closed_form_attributes(expert),
        )
        return self

    def transform(self, W: WeightsLike) -> np.ndarray:
        """Compute the joined features.

        Parameters
        ----------
        W : ModelCollection or dict of str to array-like
            The layers in `layers_`, at least.

        Returns
        -------
        ndarray of shape (n_models, n_features)
            Centred on the training models, whose root mean square length is about one;
            along `n_components` principal directions if that is not None.
        """
        return super().transform(W)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = False
        return tags
