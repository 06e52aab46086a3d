"""One server for the tests that do not change it; models are written once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.launch import ServerProcess

MONITORING = "prometheus_config { enable: true }\n"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel folder to copy from."""
    from tiny_saved_models import write_tiny

    return write_tiny(tmp_path_factory.mktemp("tiny") / "1")


@pytest.fixture(scope="session")
def base_path(tiny_model: Path) -> Path:
    """A base path with version 1; not to be changed."""
    return tiny_model.parent


@pytest.fixture(scope="session")
def server(base_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A running server of the tiny model, called `tiny`."""
    monitoring = tmp_path_factory.mktemp("config") / "monitoring.txt"
    monitoring.write_text(MONITORING)
    flags = [f"--monitoring_config_file={monitoring}", "--enable_grpc_healthcheck_service", "--unheard_of=1"]
    with ServerProcess(base_path, "tiny", flags=flags) as process:
        yield process


@pytest.fixture(scope="session")
def recommender_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path with version 7 of a five-item recommender."""
    from tiny_saved_models import write_recommender

    return write_recommender(tmp_path_factory.mktemp("recommender") / "7").parent


@pytest.fixture(scope="session")
def recommender(recommender_path: Path) -> Iterator[ServerProcess]:
    """A running server of that model, called `tandem`."""
    with ServerProcess(recommender_path, "tandem") as process:
        yield process
