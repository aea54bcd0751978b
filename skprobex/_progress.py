"""A progress bar on stderr, where asked for."""

import sys


class ProgressBar:
    """Context manager around a tqdm bar, or nothing at all with ``verbose=0``."""

    def __init__(self, verbose, name, total, unit):
        self._bar = None
        if verbose:
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=name, unit=unit, file=sys.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()

    def update(self, n, **shown):
        """Advance by n, showing what else is worth watching."""
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(n)
