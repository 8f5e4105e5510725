"""Runs tasks on a Ray cluster: the same core in an actor pool, the journal with the caller."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from litelvlm.annotate.rows import Row, Task
from litelvlm.errors import InputError


class Annotator:
    """One worker: loads the model once, then answers batches of tasks.

    Args:
        model: keyword arguments of `litelvlm.load`.
        options: of `rows.annotate`.
        threads: CPU threads; None leaves Ray's own.
    """

    def __init__(
        self, model: dict[str, Any], options: dict[str, Any], threads: int | None = None
    ) -> None:
        import torch

        from litelvlm.loading import load

        if threads:
            torch.set_num_threads(threads)
        self.pipe = load(**model)
        self.options = options

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[str]]:
        """Columns id, path, content, fault, phrases (JSON) -> a column of rows as JSON."""
        from litelvlm.annotate.runner import run

        columns = (batch[name].tolist() for name in ("id", "path", "content", "fault", "phrases"))
        tasks = [
            Task(name, InputError(fault) if fault else path or content, tuple(json.loads(phrases)))
            for name, path, content, fault, phrases in zip(*columns, strict=True)
        ]
        found = [
            rows for part in run(self.pipe, tasks, len(tasks), **self.options) for rows in part
        ]
        return {"rows": [json.dumps(rows) for rows in found]}


def run(
    tasks: Iterable[Task],
    model: dict[str, Any],
    *,
    workers: int = 1,
    gpus: float = 0,
    batch: int = 8,
    threads: int | None = None,
    **options: Any,
) -> Iterator[list[list[Row]]]:
    """The rows of the tasks, in any order, as workers answer them.

    Args:
        tasks: paths must be readable from every worker.
        model: keyword arguments of `litelvlm.load`.
        workers: copies of the model.
        gpus: of each worker.
        batch: pictures in a worker's memory together.
        threads: CPU threads of a worker.
        **options: of `rows.annotate`.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--ray needs Ray: pip install 'litelvlm[ray]'") from None
    items = [_item(task) for task in tasks]
    if not items:
        return
    if not ray.is_initialized():
        ray.init(include_dashboard=False)  # nobody looks at it
    dataset = ray.data.from_items(items).map_batches(
        Annotator,
        fn_constructor_args=(model, options, threads),
        compute=ray.data.ActorPoolStrategy(size=workers),
        batch_size=batch,
        num_gpus=gpus,
    )
    for part in dataset.iter_batches(batch_size=None):
        yield [json.loads(rows) for rows in part["rows"]]


def _item(task: Task) -> dict[str, Any]:
    """A task as columns that Arrow can hold."""
    given = task.picture
    return {
        "id": task.id,
        "path": given if isinstance(given, str) else "",
        "content": given if isinstance(given, bytes) else b"",
        "fault": str(given) if isinstance(given, InputError) else "",
        "phrases": json.dumps(task.phrases),
    }
