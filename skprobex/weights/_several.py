"""Several layers of the same models, validated."""

import torch


class SeveralLayers:
    """Validated weights by layer name; a layer is taken by its name.

    Parameters
    ----------
    layers : dict of str to weights
        DenseWeights, LowRankWeights or LayerWeights, of as many models each.
    """

    def __init__(self, layers):
        self.layers = layers

    def __len__(self):
        return len(next(iter(self.layers.values())))

    def __getitem__(self, name):
        return self.layers[name]

    @property
    def compute_dtype(self):
        """Float64 where any layer is computed in it."""
        dtypes = {layer.compute_dtype for layer in self.layers.values()}
        return torch.float64 if torch.float64 in dtypes else torch.float32
