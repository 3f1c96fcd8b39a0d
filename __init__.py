"""Lookback: recommenders that look back over long user histories, trained, evaluated and served.

In Python::

    done = lookback.train(model_type="sim", dataset_dir="dataset", export_dir="export")
    bundle = lookback.load_bundle("export")
    best = bundle.recommend(["A2SUAM1J3GNN3B"], k=10, dataset_dir="dataset")

Importing the package imports nothing else; what is public comes from `lookback.api` once it is
asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookback.api import Dataset, load_bundle, load_dataset, train

__version__ = "0.1.0"

__all__ = ["Dataset", "__version__", "load_bundle", "load_dataset", "train"]


def __getattr__(name: str) -> Any:
    """What `__all__` promises, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lookback import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """What is public."""
    return sorted(__all__)
