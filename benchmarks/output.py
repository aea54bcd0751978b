"""Where the benchmarks' tables go."""

from contextlib import contextmanager, nullcontext


@contextmanager
def saying(path):
    """Give a function that prints a line, and writes it to a file if there is one.

    Each line is written at once: a run that is cut off leaves what it finished.

    Parameters
    ----------
    path : path-like or None
    """
    with open(path, "w") if path else nullcontext() as output:

        def say(text):
            print(text, flush=True)
            if output:
                print(text, file=output, flush=True)

        yield say
