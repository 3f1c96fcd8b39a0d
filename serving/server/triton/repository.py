"""A model repository of Triton: a directory a model, and in it one for each version.

backends/python/                the backend of the installed Triton
models/NAME/config.pbtxt
models/NAME/VERSION/model.py    imports `serving.server.triton.backend`
models/NAME/VERSION/bundle.json    which bundle that version is
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from lookback.core.json_files import read_json
from lookback.serving.server.triton.installation import Installation
from lookback.serving.server.wire import INPUT, OUTPUT

BUNDLE_FILE = "bundle.json"
ENDING_FILE = "ending"
"""Beside the directory of models, once the server ends: Triton itself takes calls until its clients
have gone, and cuts those off that never do."""

_MODEL = "from lookback.serving.server.triton.backend import TritonPythonModel\n"
_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {most_requests}
input [ {{ name: "{input}" data_type: TYPE_STRING dims: [ 1 ] }} ]
output [ {{ name: "{output}" data_type: TYPE_STRING dims: [ 1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
version_policy {{ latest {{ num_versions: 1 }} }}
dynamic_batching {{ }}
"""
"""Without a `default_queue_policy`: with any, Triton hands a model its next batch only when it asks
for one, and looks for that twice a second (2.51, dynamic_batch_scheduler.cc, `SupportPrefetching`).
Of the calls that `backend.py` is handed it refuses what is not soon scored."""


@dataclasses.dataclass(frozen=True)
class BatchLimits:
    """Of what Triton gives a model.

    Attributes:
      most_requests: of a call, and of all calls that are handed over together.
      most_seconds: that a call may have to wait from then on; None: see `serving.server.backlog`.
    """

    most_requests: int
    most_seconds: float | None


@dataclasses.dataclass(frozen=True)
class StoreSource:
    """The store that models read.

    Attributes:
      address: of it; None: there is none.
      beyond_window: see `serving.store.completion`.
    """

    address: str | None
    beyond_window: bool


@dataclasses.dataclass(frozen=True)
class VersionSource:
    """Which bundle a version is, and what it reads besides.

    Attributes:
      name: of the model.
      path: of the bundle.
      digest: of its manifest.
      most_seconds: see `BatchLimits`.
      store: that it reads.
    """

    name: str
    path: Path
    digest: str
    most_seconds: float | None
    store: StoreSource


class ModelRepository:
    """One in a directory of its own.

    Args:
      directory: an empty one.
      installation: of Triton.
      limits: of each model's batches.
      store: that models read.
    """

    def __init__(
        self, directory: Path, installation: Installation, limits: BatchLimits, store: StoreSource
    ) -> None:
        self.models = directory / "models"
        self.backends = directory / "backends"
        self._limits, self._store = limits, store
        self.models.mkdir()
        # The stub is looked for beside the backend's library.
        python = self.backends / "python"
        shutil.copytree(installation.backend, python)
        shutil.copy2(installation.stub, python)

    def add(self, name: str, version: int, bundle: Path, digest: str) -> None:
        """Adds a version of a model, which Triton takes when it is told to load it.

        Args:
          name: of the model.
          version: higher than any before.
          bundle: its directory.
          digest: of its manifest.
        """
        directory = self.models / name / str(version)
        directory.mkdir(parents=True)
        content = {
            "name": name,
            "path": str(bundle.resolve()),
            "digest": digest,
            "most_seconds": self._limits.most_seconds,
            "store": dataclasses.asdict(self._store),
        }
        (directory / BUNDLE_FILE).write_text(json.dumps(content), encoding="utf-8")
        (directory / "model.py").write_text(_MODEL)
        (self.models / name / "config.pbtxt").write_text(
            _CONFIG.format(
                name=name,
                input=INPUT,
                output=OUTPUT,
                most_requests=self._limits.most_requests,
            )
        )

    def end(self) -> None:
        """Has every model refuse what comes from now on."""
        (self.models.parent / ENDING_FILE).touch()

    def remove(self, name: str, version: int) -> None:
        """Removes a version that was refused, or that another has replaced."""
        shutil.rmtree(self.models / name / str(version), ignore_errors=True)


def source_of(model: Path, version: str) -> VersionSource:
    """What `ModelRepository.add` was told.

    Args:
      model: its directory in the repository.
      version: of it.
    """
    content = read_json(model / version / BUNDLE_FILE)
    store = StoreSource(**content["store"])
    path, seconds = Path(content["path"]), content["most_seconds"]
    return VersionSource(content["name"], path, content["digest"], seconds, store)
