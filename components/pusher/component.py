"""Pusher: puts a blessed model where the model server looks, in one step, with warm-up records."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from tfx import types
from tfx.components.pusher import component as stock
from tfx.components.pusher import executor as stock_executor
from tfx.dsl.components.base import base_component, executor_spec
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.utils import proto_utils

from components.pusher import versions

CONFIG_FILE = "tandem_config.json"


class Executor(stock_executor.Executor):
    """Stock Pusher with an atomic publish; an unblessed model leaves nothing behind."""

    def Do(
        self,
        input_dict: dict[str, list[types.Artifact]],
        output_dict: dict[str, list[types.Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Pushes if every blessing says so.

        Args:
            input_dict: `model`, `model_blessing`, `infra_blessing`, possibly `sequences`.
            output_dict: `pushed_model`.
            exec_properties: `push_destination`, `warmup_requests`, `warmup_log`, `keep_versions`,
                `resolved_config`.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed_model = artifact_utils.get_single_instance(output_dict["pushed_model"])
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(exec_properties["push_destination"], destination)
        directory = destination.filesystem.base_directory
        if "://" in directory:
            # Object stores have no rename; the stock order, saved_model.pb last, is the best they offer.
            super().Do(input_dict, output_dict, exec_properties)
            return
        base = Path(directory)
        versions.remove_leftovers(base)
        if not self.CheckBlessing(input_dict):
            print("not pushed: the model is not blessed")
            self._MarkNotPushed(pushed_model)
            return

        def complete(folder: Path) -> None:
            from components.pusher.warmup import write_warmup

            extra = folder / versions.EXTRA_FOLDER
            extra.mkdir(exist_ok=True)
            if exec_properties["resolved_config"]:
                (extra / CONFIG_FILE).write_text(exec_properties["resolved_config"], encoding="utf-8")
            if input_dict.get("sequences"):
                uri = artifact_utils.get_single_uri(input_dict["sequences"])
                log = exec_properties.get("warmup_log") or ""
                write_warmup(folder, uri, int(exec_properties["warmup_requests"]), log)

        version = versions.publish(Path(self.GetModelPath(input_dict)), base, int(time.time()), complete)
        print(f"pushed to {version}")
        removed = versions.prune(base, int(exec_properties["keep_versions"]))
        if removed:
            print(f"removed old versions {removed}")
        _describe(Path(pushed_model.uri), version)
        self._MarkPushed(pushed_model, pushed_destination=str(version), pushed_version=version.name)


def _describe(folder: Path, version: Path) -> None:
    """The artifact: a copy of the version by hard links, which takes no space of its own, and its place."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(version, folder, dirs_exist_ok=True, copy_function=_link_or_copy)
    text = json.dumps({"pushed_destination": str(version), "bytes": versions.folder_bytes(version)})
    (folder / "pushed.json").write_text(text + "\n", encoding="utf-8")


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


class AtomicPusherSpec(ComponentSpec):
    """Inputs, outputs and parameters of `AtomicPusher`."""

    PARAMETERS = {
        "push_destination": ExecutionParameter(type=pusher_pb2.PushDestination),
        "warmup_requests": ExecutionParameter(type=int),
        "warmup_log": ExecutionParameter(type=str),
        "keep_versions": ExecutionParameter(type=int),
        "resolved_config": ExecutionParameter(type=str),
        "code_version": ExecutionParameter(type=str),
    }
    INPUTS = {
        "model": ChannelParameter(type=standard_artifacts.Model),
        "model_blessing": ChannelParameter(type=standard_artifacts.ModelBlessing, optional=True),
        "infra_blessing": ChannelParameter(type=standard_artifacts.InfraBlessing, optional=True),
        "sequences": ChannelParameter(type=standard_artifacts.Examples, optional=True),
    }
    OUTPUTS = {"pushed_model": ChannelParameter(type=standard_artifacts.PushedModel)}


class AtomicPusher(stock.Pusher):
    """Pushes a blessed model to `<base_directory>/<version>` by one rename.

    Versions are Unix seconds and grow strictly. A model equal to the newest version is not pushed twice.

    Args:
        model: The validated model.
        model_blessing: Of the Evaluator.
        infra_blessing: Of the InfraValidator.
        push_destination: Base path of the model server.
        sequences: Of SequenceGen: where warm-up requests come from; None = no warm-up records.
        warmup_requests: Requests shipped with the model, up to 1000.
        warmup_log: Request log of the model server to take them from. Its path is part of the cache key, its contents
            are not: what clients ask is no reason to push an unchanged model again.
        keep_versions: Newest versions kept.
        resolved_config: Configuration of the run as JSON; stored beside the model when given.
        code_version: Hash of the code behind this node; part of the cache key.
    """

    SPEC_CLASS = AtomicPusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(Executor)

    def __init__(
        self,
        model: types.BaseChannel,
        model_blessing: types.BaseChannel,
        infra_blessing: types.BaseChannel,
        push_destination: pusher_pb2.PushDestination,
        *,
        sequences: types.BaseChannel | None = None,
        warmup_requests: int = 0,
        warmup_log: str = "",
        keep_versions: int = 5,
        resolved_config: str = "",
        code_version: str = "",
    ) -> None:
        spec = AtomicPusherSpec(
            model=model,
            model_blessing=model_blessing,
            infra_blessing=infra_blessing,
            sequences=sequences,
            push_destination=push_destination,
            warmup_requests=warmup_requests,
            warmup_log=warmup_log,
            keep_versions=keep_versions,
            resolved_config=resolved_config,
            code_version=code_version,
            pushed_model=types.Channel(type=standard_artifacts.PushedModel),
        )
        # The stock constructor only builds the stock spec.
        base_component.BaseComponent.__init__(self, spec=spec)
        self.with_id("Pusher")
