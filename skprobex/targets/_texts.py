"""Text encoders: from texts to vectors. sentence-transformers is imported on first use.

An encoder is a name or a folder that sentence-transformers loads, an object with its
``encode``, or a function from a list of texts to an array. Estimators keep the name,
never the loaded model.
"""

import contextlib
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from .._typing import TextEncoder

__all__ = ["encode_texts", "encoder_name"]


def encode_texts(
    encoder: TextEncoder, texts: Sequence[str], prompt: str = "{}"
) -> np.ndarray:
    """Encode texts.

    Parameters
    ----------
    encoder : str, path-like, object with ``encode``, or callable
        See `ProbeXEmbedder`.
    texts : sequence of str
        They are put into the prompt.
    prompt : str, default="{}"
        Template with one ``{}``.

    Returns
    -------
    ndarray of shape (n_texts, d_text), float32
        Unit rows.

    Raises
    ------
    ImportError
        If sentence-transformers is needed and is not installed.
    OSError
        If the model cannot be loaded.
    TypeError, ValueError
        If texts are no texts, or the encoder gives something other than one finite
        vector for each.
    """
    texts = check_texts(texts)
    if not isinstance(prompt, str) or prompt.count("{}") != 1:
        raise ValueError(
            f"prompt={prompt!r} must hold '{{}}' once: the place of the text."
        )
    filled = [prompt.replace("{}", text) for text in texts]
    if encoder is None:
        raise ValueError(
            "There is no text_encoder to encode texts with (a function is not saved, "
            "nor is a model without a name): set_params(text_encoder=...)."
        )
    if isinstance(encoder, (str, os.PathLike)):
        encoder = _load(os.fspath(encoder))
    if not hasattr(encoder, "encode") and not callable(encoder):
        raise TypeError(
            f"text_encoder is {encoder!r}: expected a name, a folder, an object with a "
            "method encode, or a function from a list of texts to an array."
        )
    if hasattr(encoder, "encode"):
        vectors = encoder.encode(filled, show_progress_bar=False)
    else:
        vectors = encoder(filled)
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(texts) or vectors.dtype.kind != "f":
        raise ValueError(
            f"text_encoder gave an array of shape {vectors.shape} and dtype "
            f"{vectors.dtype} for {len(texts)} texts: expected one vector of floats "
            "for each."
        )
    lengths = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
    if len(bad):
        raise ValueError(
            f"text_encoder gave a vector that is zero or not finite for "
            f"{texts[bad[0]]!r}."
        )
    return (vectors / lengths[:, None]).astype(np.float32)


def check_texts(texts, name="texts"):
    """Check that these are texts, none of them empty.

    Returns
    -------
    list of str
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"{name} is one text: pass a list of them, [{texts!r}].")
    if not np.iterable(texts):
        raise TypeError(f"{name} is {texts!r}: expected a list of texts.")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{i}] is {text!r}: expected a text.")
        if not text.strip():
            raise ValueError(f"{name}[{i}] is empty.")
    if not texts:
        raise ValueError(f"{name} is empty: pass one text at least.")
    return [str(text) for text in texts]


def encoder_name(encoder: Any) -> str | None:
    """Name or folder that an encoder can be loaded from again, or None."""
    if encoder is None or isinstance(encoder, str):
        return encoder
    if isinstance(encoder, os.PathLike):
        return os.fspath(encoder)
    try:
        return encoder[0].auto_model.config._name_or_path or None
    except (AttributeError, IndexError, KeyError, TypeError):
        return None


@lru_cache(maxsize=2)
def _load(name):
    try:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(
            f"text_encoder={name!r} needs sentence-transformers (pip install "
            "sentence-transformers). A function from a list of texts to an array "
            "needs nothing."
        ) from error
    with _no_progress_bar(logging):
        try:
            # A folder is read without asking any hub.
            return SentenceTransformer(name, local_files_only=os.path.isdir(name))
        except (OSError, ValueError) as error:
            raise OSError(
                f"text_encoder={name!r} could not be loaded: {error}. Where the hub "
                "cannot be reached, pass a folder that holds the model, a "
                "SentenceTransformer, or a function from a list of texts to an array."
            ) from error


@contextlib.contextmanager
def _no_progress_bar(logging):
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
