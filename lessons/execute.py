"""Run a notebook from top to bottom in a fresh kernel, under one limit for all of it.

Unusual here: the limit is on the wall time of the whole notebook, and the kernel is killed at its
end, whatever it is doing. What is kept of the outputs is what a reader needs: no times of
execution, and of a progress bar only its last state. Sliders are not kept: without their kernel
they would read "model not found". The figure that they draw stands beside them.
"""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

WIDGET = "application/vnd.jupyter.widget-view+json"


class RunError(RuntimeError):
    """A notebook that did not run to its end, in one sentence."""


def run(notebook: NotebookNode, folder: Path, seconds: float) -> NotebookNode:
    """A copy of `notebook` with fresh outputs, run with `folder` as the working directory.

    Raises RunError: a cell failed (its last lines are in the message), the kernel died, or
    `seconds` were over.
    """
    notebook = nbformat.from_dict(notebook)
    deadline = time.monotonic() + seconds
    try:
        with tempfile.TemporaryDirectory(prefix="minik2-") as private:
            # Sockets in a folder that only this user can enter, where the system has such.
            sockets = {"transport": "ipc", "ip": f"{private}/kernel"}
            client = NotebookClient(
                notebook, timeout=None, kernel_name="python3", record_timing=False,
                resources={"metadata": {"path": str(folder)}}, shutdown_kernel="immediate",
                store_widget_state=False,
                extra_arguments=["--HistoryManager.enabled=False"],
                config=Config({"KernelManager": sockets if os.name == "posix" else {}}),
            )  # fmt: skip
            asyncio.run(asyncio.wait_for(client.async_execute(), seconds))
    except (TimeoutError, DeadKernelError):
        # nbclient takes being stopped in the midst of a cell for the kernel's death.
        if time.monotonic() >= deadline:
            raise RunError(f"It was not done after {seconds:.0f} s and was stopped.") from None
        raise RunError("Its kernel died; is there enough memory?") from None
    except CellExecutionError as error:
        last = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[-12:]
        raise RunError("A cell failed:\n" + "\n".join(last)) from None
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _tidy(cell.outputs)
    return notebook


def _tidy(outputs: list[NotebookNode]) -> list[NotebookNode]:
    tidy: list[NotebookNode] = []
    for output in outputs:
        last = tidy[-1] if tidy else None
        if WIDGET in output.get("data", {}):
            continue
        if output.output_type != "stream":
            tidy.append(output)
        elif last and last.output_type == "stream" and last.name == output.name:
            last.text += output.text
        else:
            tidy.append(output)
    for output in tidy:
        if output.output_type == "stream":
            # A carriage return starts the line again: a reader sees what came after the last.
            lines = output.text.split("\n")
            output.text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return tidy
