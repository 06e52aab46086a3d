"""What the process does with memory: one heap, quick garbage collections, a bound at which a request fails alone."""

import ctypes
import gc
import os
import resource
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # malloc.h
_KEPT_BYTES = 512 * 1024 * 1024  # 32 queries over a million items need 350 MB for a moment
_SYSTEM_ALLOCATOR = "TF_ONEDNN_USE_SYSTEM_ALLOCATOR"
_LIMIT_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # cgroup v2, v1
_MEMORY_INFO = "/proc/meminfo"


def use_one_heap() -> None:
    """Takes tensors and all else from one heap, of which `malloc_trim` gives the free pages back to the system.

    To be called before TensorFlow is imported. Where it runs oneDNN's kernels (by itself on processors with
    AVX512-VNNI, bfloat16 or AMX), tensors from 256 KiB on come from an allocator that doubles what it holds and returns
    nothing: after 16 swaps of a model with 100,000 items 358 MB were resident instead of 158. TensorFlow's
    `mkl_cpu_allocator.h` names the variable that leaves it out.

    What glibc does then would take and return the larger tensors of every request, page by page: 32 queries over a
    million items took 250 ms instead of 120. So nothing is mapped on its own, half a gigabyte stays at the top of the
    heap between requests, and threads share the heap: others end at 64 MB. Elsewhere than on glibc nothing is set.
    """
    os.environ.setdefault(_SYSTEM_ALLOCATOR, "1")
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _KEPT_BYTES)):
        set_option(option, value)


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
