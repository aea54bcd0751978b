"""What an expert is fitted to, and what is asked of it: plain data for any solver."""

from dataclasses import dataclass, field, replace

import torch

from .._warnings import listed, warn
from ..exceptions import OutlierWarning
from .center import find_center
from .deltas import DecomposedDeltas
from .ridge import sampling
from .spectral import draw_sketch
from .tasks import Task


@dataclass(frozen=True)
class Problem:
    """What an expert is fitted to, and what is asked of it: plain data.

    Attributes
    ----------
    layers : dict of str to Weights
    centers : dict of str to object
        Of each layer, as `find_center` takes it.
    views : "auto" or tuple of str
    normalize : "auto" or bool
    n_probes : int
    alphas : sequence of float
        In units of the features' mean squared norm.
    n_components : int or None
    device : torch.device
    dtype : torch.dtype
        Of all layers, as their features are joined.
    generator : torch.Generator
    task : Task or None
        On the device that solves, in float64.
    n_layers : int, optional
        Layers to use at most.
    sizes : dict of str to (Tensor of shape (n_models,) or None), optional
        See `batches.sizes_of`, of each layer that was located.
    kept : Tensor of bool or None
        Of all models that were given, those that the layers still hold.
    """

    layers: dict
    centers: dict
    views: str | tuple
    normalize: str | bool
    n_probes: int
    alphas: tuple
    n_components: int | None
    device: torch.device
    dtype: torch.dtype
    generator: torch.Generator
    task: Task | None = None
    n_layers: int | None = None
    sizes: dict = field(default_factory=dict)
    kept: torch.Tensor | None = None

    def located(self):
        """Find the centres, and leave out the models that are far from one.

        Not where they are all there is of a label: then that is what tells it.

        Returns
        -------
        Problem
            With tensors or None for `centers`.

        Warns
        -----
        OutlierWarning
            Naming the models left out.
        """
        found = {
            name: find_center(weights, self.centers[name], self.device, self.dtype)
            for name, weights in self.layers.items()
        }
        kept = torch.ones(self.n_models, dtype=torch.bool)
        for own in found.values():
            kept[own.outliers] = False
        if self.task is not None and not self.task.is_told_by(kept):
            kept[:] = True
        centers = {name: own.center for name, own in found.items()}
        sizes = {name: own.sizes for name, own in found.items()}
        located = replace(self, centers=centers, sizes=sizes, kept=kept)
        if kept.all():
            return located
        warn_of_outliers(self.layers, found, kept)
        models = kept.nonzero()[:, 0]
        return replace(
            located,
            layers={name: own[models.numpy()] for name, own in self.layers.items()},
            sizes={k: None if v is None else v[models] for k, v in sizes.items()},
            task=None if self.task is None else self.task.take(models),
        )

    @property
    def n_models(self):
        return len(next(iter(self.layers.values())))

    @property
    def n_decomposed(self):
        """How many models are decomposed, of several layers while they are compared."""
        if len(self.layers) == 1:
            return self.n_models
        return len(self.layers) * min(self.n_models, sampling.MAX_COMPARED)

    def open(self, name):
        """Open one layer's deltas; nothing is held before it is asked for."""
        weights, device, dtype = self.layers[name], self.device, self.dtype
        sketch = draw_sketch(*weights.lifted_shape[1:], self.generator, dtype, device)
        return DecomposedDeltas(
            weights, self.centers[name], sketch, device, dtype, self.sizes[name]
        )


def warn_of_outliers(layers, found, kept):
    """Name the models that are left out, by what their weights call them."""
    weights = next(iter(layers.values()))
    outliers = (~kept).nonzero()[:, 0].tolist()
    where = [name for name, own in found.items() if len(own.outliers)]
    where = f" in {listed(where)}" if len(found) > 1 else ""
    named = listed(map(weights._describe, outliers), show=str)
    warn(
        f"{len(outliers)} of {len(kept)} models lie far from all others{where}, and "
        f"are left out of the fit: {named}. Have they diverged, or are they of another "
        "base? outliers_ lists them all; center='mean' leaves none out.",
        OutlierWarning,
    )
