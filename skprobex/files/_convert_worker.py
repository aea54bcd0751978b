"""Convert one pickle checkpoint; run as a script, in a process of its own.

It imports nothing of the package, so that it starts with no more than it needs, and
limits itself before it reads: what a file makes it do ends with it.
"""

import sys

# Bytes that reading may take beyond some multiples of the file's.
_SPARE_BYTES = 2**30
# Where trainers put the weights, where they are not at the top.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "params", "weights")


def main(source, target, n_bytes, seconds):
    """Convert `source`, a file of `n_bytes`, to the safetensors file `target`."""
    import torch
    from safetensors.torch import save_file

    _limit(n_bytes, seconds)
    try:
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        # What pickle raises, whose name is no other's.
        if type(error).__name__ != "UnpicklingError":
            raise
        raise ValueError("it holds more than tensors, or is no checkpoint") from None
    tensors = find_tensors(loaded, torch.Tensor)
    n_values = sum(t.numel() * t.element_size() for t in tensors.values())
    if n_values > 16 * n_bytes + 2**20:
        raise ValueError(
            f"its tensors would take {n_values} bytes, out of proportion to its size"
        )
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"{name!r} is sparse or quantised")
        # Copies: the format allows no two tensors in one place.
        tensors[name] = tensor.detach().contiguous().clone()
    save_file(tensors, target, {"format": "pt"})


def find_tensors(loaded, kind):
    """Find the tensors by name, at the top or where trainers put them.

    Parameters
    ----------
    loaded : object
        What the file holds.
    kind : type
        The tensors'.

    Raises
    ------
    ValueError
        If there are none.
    """
    places = [loaded]
    if isinstance(loaded, dict):
        places = [loaded[key] for key in _STATE_KEYS if key in loaded] + places
    for place in places:
        if not isinstance(place, dict):
            continue
        found = {
            name: tensor
            for name, tensor in place.items()
            if isinstance(name, str) and isinstance(tensor, kind)
        }
        if found:
            return found
    raise ValueError("it holds no tensors by name, at the top or under state_dict")


def _limit(n_bytes, seconds):
    """Bound the memory, the time and the output of this process, where it can be."""
    try:
        import resource
    except ImportError:  # Windows: the time is bounded from outside
        return
    try:
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:  # macOS: nothing bounds memory there
        used = resource.RLIM_INFINITY
    is_known = used != resource.RLIM_INFINITY
    for limit, value in (
        (resource.RLIMIT_AS, used + is_known * (6 * n_bytes + _SPARE_BYTES)),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 17 * n_bytes + 2**21),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(limit)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(limit, (value, hard))


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    except Exception as error:
        text = str(error).partition("\n")[0][:300]
        sys.exit(f"{type(error).__name__}: {text}")
