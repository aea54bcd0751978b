"""The classes that a file of a saved estimator may name, and no others.

A class enters where it is defined, by the decorator; importing the package fills the
table. A file never says where a class is from.
"""

SAVED_CLASSES: dict[str, type] = {}


def saved(cls):
    """Let objects of this class be saved and loaded, under its name."""
    if SAVED_CLASSES.setdefault(cls.__name__, cls) is not cls:
        raise ValueError(f"Two classes would be saved as {cls.__name__!r}.")
    return cls


def class_named(name):
    """Return the class of a name in the table, or None."""
    return SAVED_CLASSES.get(name)


def saved_name(cls):
    """Return the name a class is saved under, or None if it is not."""
    return cls.__name__ if SAVED_CLASSES.get(cls.__name__) is cls else None


def is_of_sklearn(name):
    """Whether the class of a name is scikit-learn's, whose versions matter as well."""
    return SAVED_CLASSES[name].__module__.startswith("sklearn.")
