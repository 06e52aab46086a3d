"""Loads a SavedModel into TensorFlow's C++ session and runs its signatures.

Does what TensorFlow Serving's C++ loader does (import the graph, restore the variables, run the initializer with the
asset paths), so shapes declared in a signature are not enforced, and errors of the graph keep their code and text.
A callable of the session costs 10 us from Python where a loaded concrete function costs 500 us
(docs/decisions/0041-serve-through-the-c-api.md).
"""

import ctypes
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, saved_model_pb2
from tensorflow.python.client import pywrap_tf_session as c_api

# Registers the exception classes that the C API raises; without it the first error aborts the process.
from tensorflow.python.framework import errors_impl

from serving.server.graph_import import import_graph
from serving.server.status import Code, StatusError, invalid_argument
from serving.server.tensors import object_array

INIT_OP = "__saved_model_init_op"
_VARIABLES = "variables/variables"
_MAX_CALLABLES = 256
_MAX_PREPARED = 64  # signatures; the rest of the table is for requests with an output_filter


@dataclass(frozen=True)
class SessionThreads:
    """Thread counts of the session, by the meaning of TensorFlow's ConfigProto (0 = one per core).

    `inter_op` below 0 runs the whole graph in the calling thread: many requests already keep all cores busy, and the
    hop to another thread costs more than these graphs gain from it.
    """

    intra_op: int = 0
    inter_op: int = -1


class LoadedModel:
    """One SavedModel, restored and initialised.

    Args:
        path: Folder that holds `saved_model.pb`.
        tags: Tags of the MetaGraph to load.
        threads: Thread counts of the session.
        after_piece: Called after each piece of the graph that is imported, with the seconds that it took.
        on_imported: Called when the graph is imported, before the variables are restored.

    Raises:
        StatusError: The folder is no loadable SavedModel; the code is NOT_FOUND, DATA_LOSS or TensorFlow's own.
    """

    def __init__(
        self,
        path: Path,
        tags: Collection[str] = ("serve",),
        threads: SessionThreads | None = None,
        *,
        after_piece: Callable[[float], None] = lambda _: None,
        on_imported: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        meta_graph = _read_meta_graph(path, frozenset(tags))
        _check_files(path, meta_graph)
        self.signatures: Mapping[str, meta_graph_pb2.SignatureDef] = dict(meta_graph.signature_def)
        self._lock = threading.Lock()
        self._callables: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
        self._session = None
        try:
            self._graph, self._session = _open_session(meta_graph, threads or SessionThreads(), after_piece)
            on_imported()
            self._restore(meta_graph)
        except errors_impl.OpError as error:
            self.close()
            raise StatusError(Code(error.error_code), f"{error.message} (while loading {path})") from error

    def run(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Runs the graph once.

        Args:
            feeds: Tensor name to value.
            fetches: Names of the tensors to return.

        Returns:
            The value of each fetch, in order; strings as object arrays of bytes.

        Raises:
            tensorflow.errors.OpError: Whatever the graph raises.
        """
        names = tuple(feeds)
        wanted = tuple(dict.fromkeys(fetches))
        handle = self._callable(names, wanted)
        arguments = [feeds[name] for name in names]
        if handle is None:
            handle = _make_callable(self._session, names, wanted, ())
            try:
                values = self._run_callable(handle, arguments)
            finally:
                c_api.TF_SessionReleaseCallable(self._session, handle)
        else:
            values = self._run_callable(handle, arguments)
        arrays = [value if isinstance(value, np.ndarray) else _scalar(value) for value in values]
        if len(wanted) == len(fetches):
            return arrays
        by_name = dict(zip(wanted, arrays, strict=True))
        return [by_name[name] for name in fetches]

    async def run_in_batch(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray] | None:
        """None: without a batcher in front, every request runs in a thread of its own."""
        return None

    def prepare(self) -> None:
        """Makes the callables of whole signatures, which optimises their graphs: 50 to 100 ms for each.

        Without it the first request to a new version would wait for that, and those behind it. A signature that cannot
        be run is left for its requests to find out, as in TensorFlow Serving.
        """
        signatures = [signature for name, signature in self.signatures.items() if name != INIT_OP]
        for signature in signatures[:_MAX_PREPARED]:
            feeds = tuple(signature.inputs[alias].name for alias in sorted(signature.inputs))
            fetches = tuple(dict.fromkeys(signature.outputs[alias].name for alias in sorted(signature.outputs)))
            try:
                self._callable(feeds, fetches)
            except errors_impl.OpError:
                continue

    def _run_callable(self, handle: int, arguments: Sequence[np.ndarray]) -> list[Any]:
        try:
            return list(c_api.TF_SessionRunCallable(self._session, handle, arguments, None))
        except UnicodeDecodeError as error:
            # The graph failed with a message that quotes bytes of the request which are not UTF-8; the C API loses the
            # code over it. What quotes its input complains about its input.
            raise invalid_argument(bytes(error.object).decode("utf-8", "replace")) from None

    def close(self) -> None:
        """Frees the session and its variables, and gives the memory back to the system."""
        session, self._session = self._session, None
        self._callables.clear()
        if session is None:
            return
        c_api.TF_CloseSession(session)
        c_api.TF_DeleteSession(session)
        self._graph.Dismantle()
        _return_free_memory()

    def _callable(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> int | None:
        """Returns the kept callable; None when the table is full (output_filter alone has 2^n values)."""
        key = (feeds, fetches)
        handle = self._callables.get(key)
        if handle is not None:
            return handle
        with self._lock:
            if key not in self._callables:
                if len(self._callables) >= _MAX_CALLABLES:
                    return None
                self._callables[key] = _make_callable(self._session, feeds, fetches, ())
            return self._callables[key]

    def _restore(self, meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
        saver = meta_graph.saver_def
        if saver.restore_op_name:
            self._run_target(saver.restore_op_name, {saver.filename_tensor_name: str(self.path / _VARIABLES)})
        target = _initializer(meta_graph)
        if target:
            assets = {
                asset.tensor_info.name: str(self.path / "assets" / asset.filename)
                for asset in meta_graph.asset_file_def
            }
            self._run_target(target, assets)

    def _run_target(self, target: str, texts: Mapping[str, str]) -> None:
        handle = _make_callable(self._session, tuple(texts), (), (target,))
        values = [object_array([text.encode()]).reshape(()) for text in texts.values()]
        c_api.TF_SessionRunCallable(self._session, handle, values, None)
        c_api.TF_SessionReleaseCallable(self._session, handle)


def _read_meta_graph(path: Path, tags: frozenset[str]) -> meta_graph_pb2.MetaGraphDef:
    file = path / "saved_model.pb"
    try:
        if file.exists() and not file.is_file():  # a pipe or a device would be read for ever
            raise OSError("not a regular file")
        content = file.read_bytes()
    except OSError as error:
        raise StatusError(
            Code.NOT_FOUND, f"Could not find SavedModel .pb at supplied export directory path: {path} ({error})"
        ) from error
    try:
        saved_model = saved_model_pb2.SavedModel.FromString(content)
    except DecodeError as error:
        raise StatusError(Code.DATA_LOSS, f"Can't parse {file} as binary proto") from error
    for meta_graph in saved_model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == tags:
            return meta_graph
    found = [sorted(meta_graph.meta_info_def.tags) for meta_graph in saved_model.meta_graphs]
    raise StatusError(
        Code.NOT_FOUND,
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(sorted(tags))} }} "
        f"in {file}; it has {found}",
    )


def _check_files(path: Path, meta_graph: meta_graph_pb2.MetaGraphDef) -> None:
    """Raises for what TensorFlow would not complain about: no variables yet, or files that never end.

    A folder that is being copied has its graph before its variables. TensorFlow then restores nothing and every request
    fails, while the version seems to be served; as an error the load is tried again.
    """
    index = path / f"{_VARIABLES}.index"
    if meta_graph.saver_def.restore_op_name and not index.exists():
        raise StatusError(Code.NOT_FOUND, f"Could not find the variables of the SavedModel: {index} is missing")
    for name in ("variables", "assets"):
        for folder, _, files in os.walk(path / name):
            for file in (Path(folder, file) for file in files):
                if file.exists() and not file.is_file():
                    raise StatusError(Code.NOT_FOUND, f"Could not read {file}: not a regular file")


def _open_session(
    meta_graph: meta_graph_pb2.MetaGraphDef, threads: SessionThreads, after_piece: Callable[[float], None]
) -> tuple[Any, Any]:
    graph = import_graph(meta_graph.graph_def, after_piece)
    config = config_pb2.ConfigProto(
        intra_op_parallelism_threads=threads.intra_op, inter_op_parallelism_threads=threads.inter_op
    )
    session_options = c_api.TF_NewSessionOptions(target="", config=config)
    try:
        session = c_api.TF_NewSessionRef(graph, session_options)
    finally:
        c_api.TF_DeleteSessionOptions(session_options)
    c_api.ExtendSession(session)
    return graph, session


def _initializer(meta_graph: meta_graph_pb2.MetaGraphDef) -> str:
    """Name of the operation to run after the restore, of either generation of SavedModels; empty if there is none."""
    if INIT_OP in meta_graph.signature_def:
        outputs = meta_graph.signature_def[INIT_OP].outputs
        return str(outputs[INIT_OP].name).split(":")[0] if INIT_OP in outputs else ""
    for key in ("saved_model_main_op", "legacy_init_op"):
        names = meta_graph.collection_def[key].node_list.value if key in meta_graph.collection_def else []
        if names:
            return str(names[0]).split(":")[0]
    return ""


def _make_callable(session: Any, feeds: Sequence[str], fetches: Sequence[str], targets: Sequence[str]) -> int:
    options = config_pb2.CallableOptions(feed=feeds, fetch=fetches, target=targets)
    buffer = c_api.TF_NewBufferFromString(options.SerializeToString())
    try:
        return int(c_api.TF_SessionMakeCallable(session, buffer))
    finally:
        c_api.TF_DeleteBuffer(buffer)


def _scalar(value: Any) -> np.ndarray:
    """The C API answers bare values for tensors without dimensions; bytes must stay as they are."""
    return object_array([value]).reshape(()) if isinstance(value, bytes) else np.asarray(value)


def _return_free_memory() -> None:
    """Asks glibc to unmap what an unloaded model left behind; elsewhere there is nothing to ask."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
