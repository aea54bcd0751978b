"""What may be in a file of saved estimators: these classes, and no others."""

from importlib import import_module

# Name in the file: the module that defines it here. A file never says where from.
SAVED_CLASSES = {
    "ProbeXClassifier": "skprobex._classifier",
    "ProbeXRegressor": "skprobex._regressor",
    "ProbeXEmbedder": "skprobex._embedder",
    "LayerFusion": "skprobex.layers._fusion",
    "LayerSearchCV": "skprobex.layers._search",
    "ModelTreeClustering": "skprobex.trees._clustering",
    "TreeExperts": "skprobex.trees._experts",
    "ModelIndex": "skprobex.search",
    "WeightStatistics": "skprobex.baselines",
    "SpectralStatistics": "skprobex.baselines",
    "FlatDeltas": "skprobex.baselines",
    # What they consist of.
    "ClosedFormExpert": "skprobex.probing.closed_form",
    "ProbedLayer": "skprobex.probing.closed_form",
    "ProbedView": "skprobex.probing.probes",
    "TextSpace": "skprobex._text_space",
    "TextSide": "skprobex.probing.naming",
    "NeuralExpert": "skprobex.probing.training",
    "History": "skprobex.probing.training",
    "ViewInputs": "skprobex.probing.inputs",
    "DenseTrees": "skprobex.trees._parts",
    "LowRankTrees": "skprobex.trees._parts",
    "Sketcher": "skprobex.trees._distances",
    "SubspaceSketcher": "skprobex.trees._distances",
    "Form": "skprobex.trees._forms",
    # What stands in for an expert where there are too few models.
    "DummyClassifier": "sklearn.dummy",
    "DummyRegressor": "sklearn.dummy",
}


def class_named(name):
    """Return the class of a name in the table, or None."""
    module = SAVED_CLASSES.get(name)
    return None if module is None else getattr(import_module(module), name)


def saved_name(cls):
    """Return the name a class is saved under, or None if it is not."""
    name = cls.__name__
    return name if class_named(name) is cls else None
