"""SearchResult."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils import Bunch

if TYPE_CHECKING:
    import pandas as pd


class SearchResult(Bunch):
    """What a search has found, best first: a Bunch of names, scores and metadata.

    Parameters
    ----------
    names : list of str, or list of such lists
        Of the models found; for several queries a list for each.
    scores : ndarray of shape (n_found,), or list of such arrays
        Their inner products with the query.
    metadata : list of dict, or list of such lists
        What is known of them.

    See Also
    --------
    ModelIndex : Where it comes from.
    """

    def __init__(
        self,
        names: list[str] | list[list[str]],
        scores: np.ndarray | list[np.ndarray],
        metadata: list[dict[str, Any]] | list[list[dict[str, Any]]],
    ) -> None:
        super().__init__(names=names, scores=scores, metadata=metadata)

    def to_frame(self) -> pd.DataFrame:
        """Return what was found as a table.

        Returns
        -------
        pandas.DataFrame
            A row per model found, indexed by its name (and before that, for several
            queries, by the query's number); the score, and a column per key of the
            metadata.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError(
                "to_frame needs pandas (pip install pandas); names, scores and "
                "metadata have the same."
            ) from error
        if isinstance(self.scores, np.ndarray):
            scores, metadata = self.scores, self.metadata
            index = pd.Index(self.names, name="model", dtype=object)
        else:
            scores = np.concatenate(self.scores)
            metadata = [entry for entries in self.metadata for entry in entries]
            pairs = [(i, name) for i, found in enumerate(self.names) for name in found]
            index = pd.MultiIndex.from_tuples(pairs, names=["query", "model"])
        frame = pd.DataFrame(metadata, index=index)
        frame = frame.rename(columns={"score": "metadata_score"})
        frame.insert(0, "score", scores)
        return frame
