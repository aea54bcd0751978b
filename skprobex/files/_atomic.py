"""Files that are complete or absent, whenever the writing is interrupted."""

import os
import secrets
from contextlib import contextmanager


@contextmanager
def replacing(path):
    """Open a file that takes the place of `path` once the block has ended well.

    Readers see the old file or the whole new one; a crash, a full disk or an error
    leaves the old one.

    Parameters
    ----------
    path : Path
        Its folder is made if it does not exist.

    Yields
    ------
    binary file
        Lies beside `path` until then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}.incomplete")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            # Without it a power cut could leave the new name on an empty file.
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
