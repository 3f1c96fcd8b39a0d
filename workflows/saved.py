"""A saved workflow on disk: data, which `transform` reads, and NVTabular's pickle, which is code.

    DIR/
      options.json    dataset and options; all other files with sizes and digests
      features.json   (typed histories) the transformation of each feature, with what was fitted
      categories/     (histories) unique.NAME.parquet, the known values in the order of their ids
      encoder/        (histories) NVTabular's Categorify alone, as a workflow of its own
      vocabulary/     (rows) NAME.arrow, the known values by key, with their ids
      metadata.json   NVTabular's versions
      workflow.pkl    the operators, for NVTabular's users

`nvtabular.Workflow.load` unpickles ``workflow.pkl``, which runs whatever somebody put there.
Nothing of ours does that: all that a command needs is in the other files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookback.core.digests import digest_of, read_trusted
from lookback.core.errors import UserError, shown
from lookback.core.json_files import read_json
from lookback.core.manifests import (
    FILES,
    entries_of,
    fault_of,
    has_digests,
    is_whole,
    sealed,
    visible_files,
)
from lookback.formats.dataset_info import WORKFLOW_DIRECTORY
from lookback.formats.verification import TRUSTED, require_trusted, verify_dataset

if TYPE_CHECKING:
    import nvtabular as nvt

OPTIONS_FILE = "options.json"

_CODE = ".pkl"  # nothing of ours reads it, so it may be missing, or be what it likes

PLACE = "@workflow"
"""In the pickle, the directory it lies in: `Workflow.load` puts the real one in its stead."""


def saved_workflow(directory: str | Path) -> Path:
    """The workflow in a dataset, or the directory itself."""
    inner = Path(directory) / WORKFLOW_DIRECTORY
    return inner if inner.is_dir() else Path(directory)


def read_saved_options(directory: str | Path) -> dict[str, Any]:
    """``dataset`` and ``options`` of a saved workflow.

    Raises:
      UserError: if `directory` is not one.
    """
    saved = _read_options(directory)
    return {"dataset": saved["dataset"], "options": saved["options"]}


def verify_workflow(directory: str | Path, trusted: str | None = None) -> str | None:
    """Compares the files of a saved workflow that `transform` reads with what was saved.

    Args:
      directory: see `saved_workflow`.
      trusted: SHA-256 that ``options.json`` must have, or of a dataset's workflow the dataset's
        manifest; None: any.

    Returns:
      Why they cannot be compared, in words; None if they were.

    Raises:
      UserError: naming the first file that is missing or another one; or if it is not what is
        trusted.
    """
    place = saved_workflow(directory)
    if trusted is not None and place != Path(directory):
        require_trusted(Path(directory), trusted)
        verify_dataset(Path(directory), parts=(WORKFLOW_DIRECTORY,))
    elif place != Path(directory):  # another workflow may be whole, and not that of the dataset
        verify_dataset(Path(directory), parts=(f"{WORKFLOW_DIRECTORY}/{OPTIONS_FILE}",))
    elif trusted is not None:
        read_trusted(place / OPTIONS_FILE, trusted, TRUSTED)
    saved = _read_options(directory)
    if FILES not in saved and trusted is not None:
        raise UserError(
            f"{TRUSTED}: expected a workflow with digests of its files, but {place / OPTIONS_FILE} "
            "has none. Save it again with `python -m workflows fit`."
        )
    if FILES not in saved:
        return (
            f"{place / OPTIONS_FILE} has no digests of the workflow's files (an earlier version "
            "saved it), so what is damaged in them may go unnoticed"
        )
    read = {name: entry for name, entry in saved[FILES].items() if not name.endswith(_CODE)}
    fault = fault_of(place, read)
    if fault is not None:
        raise _damaged(place, fault)
    return None


def workflow_digest(directory: Path) -> str:
    """The digest by which a saved workflow can be trusted."""
    return digest_of(directory / OPTIONS_FILE)


def _read_options(directory: str | Path) -> dict[str, Any]:
    """The content of ``options.json``, checked."""
    place = saved_workflow(directory)
    try:
        saved = read_json(place / OPTIONS_FILE)
        dataset, options = saved.get("dataset"), saved.get("options")
        if not isinstance(dataset, str) or not isinstance(options, dict):
            raise UserError(f"dataset {shown(dataset)} with options {shown(options)}")
    except UserError as error:
        raise UserError(
            f"{directory} is not a workflow that `fit` or `run` saved ({error}). Point "
            "--workflow at one, or at a dataset."
        ) from error
    if has_digests(saved) and not is_whole(saved):
        raise _damaged(place, f"the content of {OPTIONS_FILE} is not what was written")
    return saved


def _damaged(place: Path, what: str) -> UserError:
    return UserError(
        f"The saved workflow {place} is damaged: {what}. Copy it again from where it was saved, or "
        "save it again with `python -m workflows fit`, or the whole dataset with `run`."
    )


def write_workflow(workflow: nvt.Workflow, directory: Path) -> None:
    """Saves a fitted workflow as NVTabular does, but for what is true of this run alone.

    That is the time and the order of sets, which would make each run's files differ, and the paths
    of this machine: `nvtabular.Workflow.save` leaves in the pickle where the vocabularies are and
    were.
    """
    from merlin.dag import Graph
    from merlin.dag.node import iter_nodes
    from nvtabular.ops import StatOperator

    for node in iter_nodes([workflow.output_node]):
        for schema in (node.input_schema, node.output_schema):
            for column in schema or ():
                column.properties.pop("cat_path", None)  # where fitting wrote; loading ignores it
    workflow.save(str(directory))
    operators = [
        node.op for node in Graph.get_nodes_by_op_type([workflow.output_node], StatOperator)
    ]
    for operator in operators:
        operator.set_storage_path(PLACE, copy=False)
    with (directory / "workflow.pkl").open("wb") as file:
        _pickler()(file).dump(workflow)
    for operator in operators:
        operator.set_storage_path(str(directory), copy=False)
    metadata = directory / "metadata.json"
    content = json.loads(metadata.read_text())
    content.pop("generated_timestamp", None)
    metadata.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _pickler() -> type[Any]:
    """NVTabular's pickler, which gives equal workflows equal bytes in every process."""
    import cloudpickle
    from merlin.schema.tags import TagSet

    class Pickler(cloudpickle.Pickler):
        """Columns' tags are a set: they are written in order."""

        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is TagSet:
                return TagSet, (sorted(obj, key=lambda tag: getattr(tag, "value", tag)),)
            return super().reducer_override(obj)

    return Pickler


def write_options(options: dict[str, Any], directory: Path) -> None:
    """Writes ``options.json``, last of a workflow: it has the digests of the other files.

    Args:
      options: ``dataset`` and ``options``: what `transform` needs to read new data the same way.
      directory: of the workflow.
    """
    files = entries_of(directory, (n for n in visible_files(directory) if n != OPTIONS_FILE))
    content = sealed({**options, FILES: files})
    (directory / OPTIONS_FILE).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
