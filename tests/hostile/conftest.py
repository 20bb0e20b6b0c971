from __future__ import annotations

from collections.abc import Iterator

import pytest

from hostile.harness import Run, Worker, make_run


@pytest.fixture(scope="session")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("unharmed"))


@pytest.fixture(scope="session")
def self_contained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("contained"), copy_raw=True)


@pytest.fixture(scope="session")
def worker(unharmed: Run) -> Iterator[Worker]:
    process = Worker(unharmed)
    yield process
    process.close()


@pytest.fixture(autouse=True)
def no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GAINCAL_TRUST_DIRS", raising=False)
