"""A saved workflow on disk: data, which `transform` reads, and NVTabular's pickle, which is code.

    DIR/
      options.json    dataset and options
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

from lookback.core.errors import UserError, shown
from lookback.core.json_files import read_json
from lookback.formats.dataset_info import WORKFLOW_DIRECTORY

if TYPE_CHECKING:
    import nvtabular as nvt

OPTIONS_FILE = "options.json"

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
    try:
        saved = read_json(saved_workflow(directory) / OPTIONS_FILE)
        dataset, options = saved.get("dataset"), saved.get("options")
        if not isinstance(dataset, str) or not isinstance(options, dict):
            raise UserError(f"dataset {shown(dataset)} with options {shown(options)}")
    except UserError as error:
        raise UserError(
            f"{directory} is not a workflow that `fit` or `run` saved ({error}). Point "
            "--workflow at one, or at a dataset."
        ) from error
    return {"dataset": dataset, "options": options}


def write_workflow(workflow: nvt.Workflow, directory: Path) -> None:
    """Saves a fitted workflow as NVTabular does, but for what is true of this run alone.

    That is the time, which would make each run's files differ, and the paths of this machine:
    `nvtabular.Workflow.save` leaves in the pickle where the vocabularies are and were.
    """
    import cloudpickle
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
        cloudpickle.dump(workflow, file)
    for operator in operators:
        operator.set_storage_path(str(directory), copy=False)
    metadata = directory / "metadata.json"
    content = json.loads(metadata.read_text())
    content.pop("generated_timestamp", None)
    metadata.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def write_options(options: dict[str, Any], directory: Path) -> None:
    """Writes ``options.json``.

    Args:
      options: ``dataset`` and ``options``: what `transform` needs to read new data the same way.
      directory: of the workflow.
    """
    (directory / OPTIONS_FILE).write_text(json.dumps(options, indent=1, sort_keys=True) + "\n")
