"""What the process does with memory: few heaps, quick garbage collections, a bound at which a request fails alone."""

import ctypes
import gc
import resource
from pathlib import Path

_M_ARENA_MAX = -8  # malloc.h
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # cgroup v2, v1
_MEMORY_INFO = "/proc/meminfo"


def limit_arenas() -> None:
    """Lets glibc keep two heaps instead of eight per core; each keeps what large batches once needed.

    Measured with `benchmarks/serving.py soak`: resident memory stays flat, throughput does not change. Elsewhere than
    on glibc there is nothing to set.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_ARENA_MAX, 2)


def freeze_startup_objects() -> None:
    """Keeps all that exists now out of future garbage collections; to be called before the first model is loaded.

    A full collection looks at every object, nearly all of which come from imports: it stopped all requests for 60 to
    90 ms, several times in ten seconds of load. Without those it takes about one.
    """
    gc.collect()
    gc.freeze()


def limit_memory(max_bytes: int) -> int:
    """Makes allocations above a limit fail.

    Small requests can ask for much: a million rows of "" fit into a few megabytes, and a graph needs kilobytes for
    each. Where the system promises memory that it does not have, such a request ends in the kernel's killing of the
    whole server. With the limit TensorFlow's allocator hears of it, and that request is RESOURCE_EXHAUSTED.

    Args:
        max_bytes: Private memory (heap, tensors, stacks) that the process may take; 0 for all that its container or
            the machine has.

    Returns:
        The limit that holds now; 0 if the system's memory is not known.
    """
    wanted = max_bytes or available_memory()
    if not wanted:
        return 0
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    return soft


def available_memory() -> int:
    """Bytes of memory of the machine, or of the container if that has fewer; 0 where Linux does not say."""
    sizes = [int(text) for text in map(_first_word, _LIMIT_FILES) if text.isdigit()]
    for line in _read(_MEMORY_INFO).splitlines():
        if line.startswith("MemTotal:"):
            sizes.append(int(line.split()[1]) * 1024)
    return min(sizes, default=0)


def _first_word(path: str) -> str:
    return (_read(path).split() or [""])[0]


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
