"""A deadline for whatever waits on somebody else's machine."""

import threading

from ..exceptions import RemoteError


def within(seconds, what, call):
    """Call a function in a thread of its own, and wait no longer than `seconds`.

    A timeout of a socket bounds the wait for a byte, not for an answer: a server that
    sends one byte now and then holds its client for ever. Nor do all libraries take
    one. Whatever is still waiting at the deadline is left behind.

    Parameters
    ----------
    seconds : float
    what : str
        Whom the error names.
    call : callable
        Takes no arguments.

    Raises
    ------
    RemoteError
        If there is no result by then.
    """
    outcome = []

    def run():
        try:
            outcome.append((call(), None))
        except BaseException as error:  # raised again where it is waited for
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise RemoteError(
            f"{what} did not answer within {seconds:.0f} seconds: it is down, or "
            "slower than is of use. Try again later, or download the files."
        )
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
