"""ProbeXEmbedder."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import Tags, check_consistent_length
from sklearn.utils.validation import check_is_fitted
from torch.nn.functional import normalize as unit_rows

from ._base import BaseProbeX, all_or_nothing
from ._registry import saved
from ._sklearn import _fit_context
from ._typing import Center, Device, RandomState, Self, TextEncoder, Views
from ._warnings import warn
from .probing.device import (
    as_array,
    as_tensor,
    solver_device,
    to_arrays,
)
from .probing.ridge.expert import ClosedFormExpert, fit_unsupervised
from .probing.tasks import Names
from .solvers import Ridge, Solver
from .solvers._adam import DEFAULT_N_COMPONENTS
from .targets._text_space import TextSpace, are_texts, check_vectors, number_texts
from .targets._texts import check_texts, encode_texts, encoder_name
from .weights import WeightsLike

# What models are compared by when nothing says what to look for.
UNSUPERVISED_VIEWS = ("log_xtx", "log_xxt")


@saved
class ProbeXEmbedder(BaseProbeX):
    """Embed models by their weights into a space that they share with text.

    Fitted on models and texts that describe them, it embeds any model of the Model Tree
    and any text, so that models are named by words that no training model had
    (zero-shot), and found by a sentence (`ModelIndex`). The task is that of ProbeX
    [1]_.

    With ``solver="ridge"``, a ridge predicts text vectors from the probed views of a
    layer, or of several (`LayerFusion`). The text vectors are centred and softly
    whitened, and names that are near to everything are held back (CSLS [3]_). Views,
    penalties and strengths are those that name most models rightly when all models of
    the same text are left out, in closed form. ``solver="adam"`` trains two towers, the
    network of `ProbeXClassifier` and a linear map of the text, to a contrastive loss
    with a learnt temperature.

    Without texts, ``fit(W)`` embeds models by the principal components of their views,
    for clustering and pictures.

    Parameters
    ----------
    text_encoder : str, SentenceTransformer, callable or None, \
default="sentence-transformers/all-MiniLM-L6-v2"
        What encodes texts: the name or the folder of a sentence-transformers model, a
        loaded one, or any function from a list of texts to an array ``(n_texts,
        d_text)``. Only names are pickled and saved. None if y and labels are vectors.
    prompt : str, default="{}"
        What texts are put into before they are encoded, such as ``"a photo of a {}"``.
    views : "auto" or tuple of str, default="auto"
        As in `ProbeXClassifier`. Without texts, ``"auto"`` is ``("log_xtx",
        "log_xxt")``.
    n_probes : int, default=64
        Probes per view and side (the paper's r_U); at most the dimension of the side.
    center : "auto", "robust", "mean", None or array-like, default="auto"
        As in `ProbeXClassifier`.
    normalize : "auto" or bool, default="auto"
        As in `ProbeXClassifier`.
    solver : {"ridge", "adam"} or solver object, default="ridge"
        The closed form, or two towers trained end to end on one layer.
    alphas : array-like of float, default=None
        Ridge penalties, in units of the features' mean squared norm. None: 15 values
        from 1e-4 to 1e3.
    n_components : int or None, default=None
        Dimensions of the embedding. None: those of the text vectors (128 without
        texts); at most as many principal directions with ``solver="ridge"``.
    device : str, default="auto"
        As in `ProbeXClassifier`.
    random_state : int, RandomState instance or None, default=None
        Draws the network, its batches, and the sketch of large layers.
    verbose : int, default=0
        1 shows a progress bar on stderr.

    Attributes
    ----------
    labels_ : ndarray of shape (n_labels,)
        The distinct texts of training, sorted; numbers if y held vectors.
    label_vectors_ : ndarray of shape (n_labels, d_text)
        Their text vectors, unit rows.
    label_scores_ : dict
        How naming went with all models of the same text left out: "accuracy" and
        "chance". Only with ``solver="ridge"``.
    text_space_ : object
        The map from text vectors to embeddings, and what holds names back.
    weight_shape_ : tuple of (int, int)
        The layer's shape, ``(d_out, d_in)``; by name where W holds several, as are the
        attributes from `center_` to `probes_`.
    layer_ : str
        The layer's name; only where W is one layer that says it.
    n_features_in_ : int
        d_out; only where W is one layer.
    feature_names_in_ : ndarray of shape (d_out,)
        Column names, where `fit` saw a data frame of 1-D weights.
    center_, views_, normalize_, probes_ : object
        As `ProbeXClassifier` has them.
    outliers_ : ndarray of int
        Models far from all others, by position: the fit left them out, and warned.
    view_scores_ : dict of str to float
        Share of models named rightly with their text left out, of every view compared.
    layers_, layer_scores_ : object
        As `ProbeXClassifier` has them, where W holds several layers.
    coef_ : ndarray of shape (n_components, n_features)
        The ridge's coefficients; with ``solver="adam"`` the text tower's weights.
    intercept_ : ndarray of shape (n_components,)
        Its offsets.
    alpha_ : float
        Penalty chosen; only with ``solver="ridge"`` and texts.
    n_iter_, loss_curve_, validation_scores_ : object
        As `ProbeXClassifier` has them.
    expert_ : object
        All fitted state.

    See Also
    --------
    ModelIndex : Search models by a sentence.
    LayerFusion : How several layers are joined.

    Notes
    -----
    What is tuned is the naming of unseen texts, not the telling apart of those of
    training, for which there is `ProbeXClassifier`.

    References
    ----------
    .. [1] E. Horwitz, B. Cavia, J. Kahana, Y. Hoshen, "Learning on Model Weights using
       Tree Experts", CVPR 2025, arXiv 2410.13569.
    .. [2] "MVProbe", ICML 2026, arXiv 2605.23410.
    .. [3] A. Conneau, G. Lample, M. Ranzato, L. Denoyer, H. Jegou, "Word Translation
       Without Parallel Data", ICLR 2018, arXiv 1710.04087.

    Examples
    --------
    Text vectors may come from anywhere. Here they are drawn, and the weights show them:

    >>> import numpy as np
    >>> from skprobex import ProbeXEmbedder
    >>> rng = np.random.default_rng(0)
    >>> texts = [f"concept {i % 30}" for i in range(120)]
    >>> vector_of = {text: rng.normal(size=8) for text in sorted(set(texts))}
    >>> def encode(texts):
    ...     return np.array([vector_of[text] for text in texts])
    >>> signal = encode(texts) @ rng.normal(size=(8, 16 * 12))
    >>> W = (signal + 0.1 * rng.normal(size=signal.shape)).reshape(120, 16, 12)
    >>> train = [i for i, text in enumerate(texts) if text < "concept 3"]
    >>> embedder = ProbeXEmbedder(text_encoder=encode, views=("xu",))
    >>> embedder = embedder.fit(W[train], [texts[i] for i in train])
    >>> unseen = sorted(set(texts) - set(embedder.labels_))
    >>> unseen
    ['concept 3', 'concept 4', 'concept 5', 'concept 6', 'concept 7', \
'concept 8', 'concept 9']
    >>> embedder.predict(W[3:8], labels=unseen)
    array(['concept 3', 'concept 4', 'concept 5', 'concept 6', 'concept 7'],
          dtype='<U9')
    """

    _parameter_constraints = {
        "text_encoder": "no_validation",
        "prompt": [str],
        **BaseProbeX._parameter_constraints,
    }

    def __init__(
        self,
        *,
        text_encoder: TextEncoder = "sentence-transformers/all-MiniLM-L6-v2",
        prompt: str = "{}",
        views: Views = "auto",
        n_probes: int = 64,
        center: Center = "auto",
        normalize: bool | Literal["auto"] = "auto",
        solver: Literal["ridge", "adam"] | Solver = "ridge",
        alphas: Sequence[float] | np.ndarray | None = None,
        n_components: int | None = None,
        device: Device = "auto",
        random_state: RandomState = None,
        verbose: int = 0,
    ) -> None:
        self.text_encoder = text_encoder
        self.prompt = prompt
        self.views = views
        self.n_probes = n_probes
        self.center = center
        self.normalize = normalize
        self.solver = solver
        self.alphas = alphas
        self.n_components = n_components
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    @all_or_nothing
    def fit(self, W: WeightsLike, y: ArrayLike | None = None) -> Self:
        """Fit the embedding.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            One layer of each model, or several: a `ModelCollection`, or a dict of
            layers by name.
        y : sequence of str, or array-like of shape (n_models, d_text), default=None
            A text for each model; class names repeat. Or a vector for each. None embeds
            by the views alone.

        Returns
        -------
        ProbeXEmbedder
            The fitted estimator itself.

        Raises
        ------
        ValueError
            Fewer than two different texts; what `ProbeXClassifier` refuses of W.
        ImportError, OSError
            If the text encoder cannot be loaded.
        """
        layers = self._read(W, reset=True)
        solver = self._solver()
        if y is None:
            return self._fit_unsupervised(layers, solver)
        labels, vectors, codes = number_texts(y, self._encode)
        check_consistent_length(next(iter(layers.values())), codes)
        before = self._expert_before(solver)
        if before is not None and not np.array_equal(labels, self.labels_):
            raise ValueError(
                "warm_start=True goes on with the texts of the fit before, but y holds "
                "others: keep the texts, or set warm_start=False."
            )
        problem = self._pose(layers, partial(self._task, vectors, codes))
        kept = as_array(problem.kept)
        expert = solver._solve(problem, self._progress, before=before)
        space = TextSpace(labels, vectors, expert.text_side)
        attributes = {}
        if isinstance(expert, ClosedFormExpert):
            accuracy = space.calibrate(codes[kept])
            scores = {"accuracy": accuracy, "chance": 1 / len(labels)}
            attributes = {"label_scores_": scores}
        else:
            space.temperature = float(np.exp(-expert.state["head.log_scale"]))
        self._publish(
            expert,
            text_space_=space,
            labels_=labels,
            label_vectors_=vectors,
            outliers_=np.flatnonzero(~kept),
            **attributes,
            **solver._attributes(expert),
        )
        self._n_features_out = len(expert.intercept)
        return self

    def _task(self, vectors, codes, device):
        device = solver_device(device)
        vectors = as_tensor(vectors, torch.float64, device)
        return Names.of(vectors, torch.from_numpy(codes).to(device), self.n_components)

    def _fit_unsupervised(self, layers, solver):
        if not isinstance(solver, Ridge):
            raise ValueError(
                "A network aligns models with texts, and needs y: pass a text for each "
                "model, or use solver='ridge'."
            )
        views, normalize = self._check_views(), self.normalize
        problem = self._pose(
            layers,
            views=UNSUPERVISED_VIEWS if views == "auto" else views,
            normalize=True if normalize == "auto" else normalize,
            n_components=self.n_components or DEFAULT_N_COMPONENTS,
        )
        expert = to_arrays(fit_unsupervised(problem))
        attributes = solver._attributes(expert)
        del attributes["alpha_"]
        outliers = np.flatnonzero(~as_array(problem.kept))
        self._publish(expert, outliers_=outliers, **attributes)
        return self

    def _encode(self, texts):
        return encode_texts(self.text_encoder, texts, self.prompt)

    def transform(self, W: WeightsLike) -> np.ndarray:
        """Embed models.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer, or layers, of each model as in fit.

        Returns
        -------
        ndarray of shape (n_models, n_components)
            Unit rows: the inner product with what `encode_text` returns is the cosine.
            Fitted without texts, the principal components of the views.
        """
        if not hasattr(self, "labels_"):
            return super().transform(W)
        is_closed = isinstance(self.expert_, ClosedFormExpert)
        embeddings = self._run_expert(W, "predict" if is_closed else "transform")
        return as_array(unit_rows(torch.from_numpy(embeddings)))

    def encode_text(self, texts: ArrayLike) -> np.ndarray:
        """Embed texts.

        Parameters
        ----------
        texts : sequence of str, or array-like of shape (n_texts, d_text)
            Texts, or their vectors where y held vectors.

        Returns
        -------
        ndarray of shape (n_texts, n_components)
            Unit rows.
        """
        self._check_has_texts()
        if are_texts(texts):
            return self.text_space_.embed(self._encode(texts))
        return self.text_space_.embed(check_vectors(texts, "texts"))

    def predict(self, W: WeightsLike, labels: ArrayLike | None = None) -> np.ndarray:
        """Name models.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer, or layers, of each model as in fit.
        labels : sequence of str or array-like, default=None
            Texts to choose from, seen in training or not; or text vectors of shape
            (n_labels, d_text). None: the texts of training.

        Returns
        -------
        ndarray of shape (n_models,)
            The text that is nearest to each model; its number if `labels` (or y in
            `fit`) are vectors.
        """
        labels, similar = self._compare(W, labels)
        return labels[similar.argmax(axis=1)]

    def predict_proba(
        self, W: WeightsLike, labels: ArrayLike | None = None
    ) -> np.ndarray:
        """Probability of each label, given that one of them is right.

        With ``solver="ridge"``, calibrated by one temperature on the training models,
        all models of the same text left out; with ``solver="adam"``, the network's own.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer, or layers, of each model as in fit.
        labels : sequence of str or array-like, default=None
            As in `predict`.

        Returns
        -------
        ndarray of shape (n_models, n_labels)
            Columns in the order of `labels`, or of `labels_`.
        """
        _, similar = self._compare(W, labels)
        return self.text_space_.probabilities(similar)

    def score(self, W: WeightsLike, y: ArrayLike) -> float:
        """Share of models whose text is found.

        Parameters
        ----------
        W : array-like of shape (n_models, d_out, d_in)
            The same layer, or layers, of each model as in fit.
        y : sequence of str, or array-like of shape (n_models, d_text)
            The text of each model. If training has seen all of them, its texts are
            chosen from; if not, the different texts of y are: zero-shot.

        Returns
        -------
        float
            Between 0 and 1.
        """
        self._check_has_texts()
        if are_texts(y):
            y = np.asarray(check_texts(y, "y"))
            labels = None if np.isin(y, self.labels_).all() else np.unique(y)
        else:
            vectors, labels = check_vectors(y, "y"), None
            y = self.text_space_.numbers_of(vectors)
            if (y < 0).any():
                labels, y = np.unique(vectors, axis=0, return_inverse=True)
                y = y.reshape(-1)
        predicted = self.predict(W, labels)
        check_consistent_length(predicted, y)
        return float(np.mean(predicted == y))

    def _compare(self, W, labels):
        """Labels, and the similarities of models to them, ``(n_models, n_labels)``."""
        self._check_has_texts()
        # First what costs little and may be wrong.
        names, *candidates = self.text_space_.find(labels, self._encode)
        return names, self.text_space_.similarities(self.transform(W), *candidates)

    def _check_has_texts(self):
        check_is_fitted(self)
        if not hasattr(self, "labels_"):
            raise ValueError(
                "This ProbeXEmbedder was fitted without texts, and shares no space "
                "with them: fit(W, y) with a text for each model."
            )

    def _saved_parameters(self):
        """Stand-ins for parameters that are not saved."""
        name = encoder_name(self.text_encoder)
        if name is not None and os.path.isabs(name):
            warn(
                f"text_encoder is saved as a folder of this machine, {name!r}: loaded "
                "elsewhere, it is not found. Name it as on the hub, or give what loads "
                "the embedder its own: set_params(text_encoder=...)."
            )
        return {"text_encoder": name}

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        if hasattr(self.text_encoder, "encode"):
            # A loaded model is as large as what it was loaded from.
            state = {**state, "text_encoder": encoder_name(self.text_encoder)}
        return state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.target_tags.two_d_labels = False
        tags.target_tags.multi_output = True
        return tags
