"""The space models share with text: its labels, and how they compete for models."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import softmax
from sklearn.utils import check_array

from .._registry import saved
from .._warnings import warn
from ..probing.device import as_array, as_tensor, to_tensors
from ..probing.text_side import TextSide
from ._calibration import fit_temperature
from ._texts import check_texts

_CPU = torch.device("cpu")


@saved
@dataclass
class TextSpace:
    """Text vectors of the labels of training, and what maps texts next to models.

    Attributes
    ----------
    labels : ndarray of shape (n_labels,)
        Texts, sorted; numbers where only vectors are known.
    vectors : ndarray of shape (n_labels, d_text)
    side : TextSide
        Holding arrays.
    temperature : float
        What similarities are divided by before they become probabilities.
    """

    labels: np.ndarray
    vectors: np.ndarray
    side: TextSide
    temperature: float = 1.0

    def embed(self, vectors):
        """Embed text vectors, unit rows."""
        if vectors.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"Text vectors have {vectors.shape[1]} dimensions, but those of fit "
                f"had {self.vectors.shape[1]}: use the same text_encoder."
            )
        side = to_tensors(self.side, _CPU)
        return as_array(side.embed(as_tensor(vectors, side.axes.dtype, _CPU)))

    def similarities(self, embeddings, vectors, numbers):
        """Cosines less what holds labels back, ``(n_models, n_labels)``."""
        side = to_tensors(self.side, _CPU)
        similar = side.similarities(
            as_tensor(embeddings, side.axes.dtype, _CPU),
            torch.from_numpy(self.embed(vectors)),
            torch.from_numpy(numbers),
        )
        return as_array(similar)

    def probabilities(self, similarities):
        """Softmax over labels, ``(n_models, n_labels)``."""
        return softmax(similarities / self.temperature, axis=1)

    def calibrate(self, codes):
        """Set the temperature on the training models, their labels left out.

        Parameters
        ----------
        codes : ndarray of int, shape (n_models,)
            Number of each model's label.

        Returns
        -------
        float
            Share of models named rightly.
        """
        numbers = np.arange(len(self.labels))
        similar = self.similarities(self.side.predictions, self.vectors, numbers)
        self.temperature = float(1 / fit_temperature(similar.astype(np.float64), codes))
        return float(np.mean(similar.argmax(axis=1) == codes))

    def find(self, labels, encode):
        """Find out what labels to choose from.

        Parameters
        ----------
        labels : sequence of str, array-like of shape (n_labels, d_text), or None
            None means those of training.
        encode : callable
            From texts to vectors.

        Returns
        -------
        names : ndarray of shape (n_labels,)
        vectors : ndarray of shape (n_labels, d_text)
        numbers : ndarray of int, shape (n_labels,)
            Number of each among the labels of training; -1 for others.
        """
        if labels is None:
            return self.labels, self.vectors, np.arange(len(self.labels))
        if not are_texts(labels):
            vectors = check_vectors(labels, "labels")
            return np.arange(len(vectors)), vectors, self.numbers_of(vectors)
        texts = check_texts(labels, "labels")
        distinct, counts = np.unique(texts, return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"labels holds {str(distinct[counts.argmax()])!r} more than once."
            )
        number_of = {label: i for i, label in enumerate(self.labels.tolist())}
        numbers = np.array([number_of.get(text, -1) for text in texts])
        return np.array(texts), encode(texts), numbers

    def numbers_of(self, vectors):
        """Numbers of text vectors among those of training; -1 for others."""
        number_of = {v.tobytes(): i for i, v in enumerate(self.vectors)}
        return np.array([number_of.get(v.tobytes(), -1) for v in vectors])


def number_texts(y, encode):
    """Number the distinct texts, or vectors.

    Parameters
    ----------
    y : sequence of str, or array-like of shape (n_models, d_text)
    encode : callable
        From texts to vectors.

    Returns
    -------
    labels : ndarray of shape (n_labels,)
    vectors : ndarray of shape (n_labels, d_text), float64
    codes : ndarray of int, shape (n_models,)
    """
    if are_texts(y):
        labels, codes = np.unique(check_texts(y, "y"), return_inverse=True)
        # Before anything is encoded.
        _check_several(labels)
        vectors = encode(labels).astype(np.float64)
    else:
        y = check_vectors(y, "y")
        vectors, codes = np.unique(y, axis=0, return_inverse=True)
        labels = np.arange(len(vectors))
        _check_several(labels)
    return labels, vectors, codes.reshape(-1).astype(np.int64)


def _check_several(labels):
    if len(labels) < 2:
        raise ValueError(
            "ProbeXEmbedder needs at least 2 different texts in y, got 1: "
            f"{labels.tolist()[0]!r}. To embed without texts, leave y out."
        )


def are_texts(y):
    """Whether these are texts rather than vectors; the first one tells."""
    if isinstance(y, (str, bytes)) or y is None:
        return True
    y = list(y) if isinstance(y, (list, tuple)) else np.asarray(y)
    if isinstance(y, np.ndarray) and y.dtype == object and y.ndim == 0:
        raise TypeError(
            f"Expected a list of texts, or an array of vectors, got a "
            f"{type(y.item()).__name__}."
        )
    if isinstance(y, np.ndarray) and y.dtype != object:
        return y.dtype.kind in "US"
    return len(y) == 0 or isinstance(y[0], (str, bytes)) or y[0] is None


def check_vectors(y, name):
    """Validate text vectors, one a row, as float64."""
    y = check_array(y, ensure_2d=False, dtype=np.float64, input_name=name)
    if y.ndim == 1:
        warn(
            f"{name} holds one number for each model, taken for vectors of one "
            "component. Numbers of classes say nothing: pass their names.",
        )
        y = y[:, None]
    # -0 is 0, also byte for byte.
    return y + 0.0
