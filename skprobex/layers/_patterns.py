"""Which layers are meant by names and patterns."""

from fnmatch import fnmatchcase


def match_layers(known, wanted):
    """List the layers that names or patterns stand for, in the order they are known.

    Parameters
    ----------
    known : sequence of str
    wanted : str, sequence of str, or None
        Names, or patterns such as ``"*.attention.*"``. None means all.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If a name or a pattern stands for no layer.
    """
    known = list(known)
    if wanted is None:
        return known
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    if not wanted:
        raise ValueError("layers is empty: name one at least, or None for all.")
    matched = set()
    for pattern in wanted:
        if not isinstance(pattern, str):
            raise TypeError(f"layers must hold names and patterns, got {pattern!r}.")
        # A name may hold brackets; it means itself first.
        found = [pattern] if pattern in known else []
        found = found or [name for name in known if fnmatchcase(name, pattern)]
        if not found:
            shown = ", ".join(map(repr, known[:5]))
            more = f" and {len(known) - 5} more" if len(known) > 5 else ""
            raise ValueError(
                f"layers: {pattern!r} matches none of {len(known)} layers: {shown}"
                f"{more}."
            )
        matched.update(found)
    return [name for name in known if name in matched]
