"""What an estimator remembers of the weights of fit, and holds later ones to."""

from sklearn.utils.validation import check_is_fitted, validate_data

from ._warnings import listed, warn
from .exceptions import MissingLayerError
from .weights import (
    ONLY,
    as_layers,
    check_same_shape,
    holds_several,
    layer_names,
    naming_layer,
    unwrap_jungle,
)


class ReadsWeights:
    """Mixin of estimators that are fitted on weights: one layer, or several."""

    def _read(self, W, *, reset):
        """Turn W into weights by layer name; `ONLY` is the name of a single layer.

        Parameters
        ----------
        W : Mapping, ModelCollection, or what `as_weights` takes
        reset : bool
            True in fit, which remembers; False afterwards, which compares.

        Returns
        -------
        dict of str to Weights

        Raises
        ------
        ValueError
            As `as_layers`; other shapes than those of fit; one layer where several were
            fitted, or several where one was.
        MissingLayerError
            Layers that `fit` saw and that are missing now.
        """
        W = unwrap_jungle(W)
        if reset:
            layers = as_layers(W, min_models=2)
            self._remember(W, layers)
            return layers
        check_is_fitted(self)
        layers = as_layers(W, self._names_in(W))
        if ONLY in layers:
            validate_data(self, W, skip_check_array=True, reset=False)
        for name, weights in layers.items():
            fitted = self.weight_shape_ if name == ONLY else self.weight_shape_[name]
            with naming_layer(name):
                check_same_shape(weights.lifted_shape, fitted, type(self).__name__)
        self._warn_of_other_layer(layers)
        return layers

    def _read_layer(self, W, *, reset):
        """Turn one layer into weights; several are an error. See `_read`."""
        if holds_several(W):
            names = layer_names(W)
            raise TypeError(
                f"W holds {len(names)} layers: pick one by its name, such as "
                f"W[{next(iter(names), 'layer')!r}]."
            )
        return self._read(W, reset=reset)[ONLY]

    def _remember(self, W, layers):
        shapes = {name: weights.lifted_shape[1:] for name, weights in layers.items()}
        for name in ("n_features_in_", "feature_names_in_", "layer_"):
            vars(self).pop(name, None)
        if ONLY not in layers:
            self.weight_shape_ = shapes
            return
        validate_data(self, W, skip_check_array=True, reset=True)
        self.weight_shape_ = shapes[ONLY]
        if layers[ONLY].layer is not None:
            self.layer_ = layers[ONLY].layer

    def _names_in(self, W):
        """Names of the layers that are needed of W; None for a single one."""
        name = type(self).__name__
        is_fitted_on_several = isinstance(self.weight_shape_, dict)
        if not holds_several(W):
            if is_fitted_on_several:
                raise ValueError(
                    f"W holds one layer, but {name} was fitted on several: pass a "
                    "ModelCollection or a dict with the layers "
                    f"{listed(self.layers_)}."
                )
            if hasattr(W, "shape"):
                check_same_shape(W.shape, self.weight_shape_, name)
            return None
        if not is_fitted_on_several:
            raise ValueError(
                f"W holds {len(layer_names(W))} layers, but {name} was fitted on one: "
                "pass that layer, W[name]."
            )
        missing = [layer for layer in self.layers_ if layer not in layer_names(W)]
        if missing:
            raise MissingLayerError(
                f"W lacks {len(missing)} of {len(self.layers_)} layers that {name} "
                f"reads: {listed(missing)}."
            )
        return self.layers_

    def _warn_of_other_layer(self, layers):
        """Warn of another layer than that of fit, where weights in files tell which."""
        fitted = getattr(self, "layer_", None)
        given = layers[ONLY].layer if ONLY in layers else None
        if None not in (given, fitted) and given != fitted:
            warn(
                f"W is layer {given!r}, but {type(self).__name__} was fitted on "
                f"{fitted!r}: unless that is another name of the same layer, pass "
                f"models[{fitted!r}]."
            )
