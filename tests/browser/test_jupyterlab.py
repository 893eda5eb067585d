"""JupyterLab in a real browser, on a copy of lesson 00: run all, answer wrongly, then rightly.

Needs Chromium, Node and npm (README.md, "Tests"). The page is driven by drive.mjs; this file
starts the server with settings of its own, so that a user's do not matter, and looks at what came
of it. Outputs are taken out of the copy first: whatever the page shows, this run has made.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import pytest

from tests.browser.driver import HERE, ROOT, found, node

LESSON = ROOT / "notebooks" / "00_k2_in_one_hour.ipynb"
PICTURES = ROOT / ".artifacts" / "browser"
EXERCISE = "config.count_expert"
ANSWER = """def count_expert(config: dict) -> int:
    return {matrices} * config["hidden_size"] * config["moe_intermediate_size"]
"""
ANSWERS = [{"name": "wrong", "source": ANSWER.format(matrices=2)},
           {"name": "right", "source": ANSWER.format(matrices=3)}]

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def server(tmp_path):
    """JupyterLab on a free port of this machine, in an empty folder: (folder, address, token)."""
    folder = tmp_path / "lessons"
    folder.mkdir()
    for name in ("config", "runtime", "settings", "workspaces", "ipython"):
        (tmp_path / name).mkdir()
    news = tmp_path / "settings" / "@jupyterlab" / "apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "MINIK2_SHORT": "1",
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
             "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
             "--ServerApp.port_retries=0", "--IdentityProvider.token=browser-test",
             f"--ServerApp.root_dir={folder}"],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "server.log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield folder, f"http://127.0.0.1:{port}", "browser-test"
    finally:
        process.terminate()  # shuts its kernels down first
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def role_of(cell) -> tuple[str | None, str | None]:
    marks = cell.metadata.get("minik2", {})
    return marks.get("exercise"), marks.get("role")


def test_lesson_00_answers_in_the_browser(server, tmp_path):
    program, chromium = node(), found("chromium", "chromium-browser", "google-chrome")
    folder, address, token = server
    notebook = nbformat.read(LESSON, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / LESSON.name)
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)

    roles = {role_of(cell): index for index, cell in enumerate(notebook.cells)}
    code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    job = {
        "url": f"{address}/lab/tree/{LESSON.name}?token={token}&reset",
        "chromium": chromium, "profile": str(tmp_path / "profile"), "pictures": str(PICTURES),
        "answerCell": roles[EXERCISE, "answer"], "checkCell": roles[EXERCISE, "check"],
        "lastCodeCell": code[-1], "answers": ANSWERS, "runLimit": 240_000, "cellLimit": 60_000,
    }
    done = subprocess.run([program, HERE / "drive.mjs"], input=json.dumps(job), capture_output=True,
                          text=True)
    assert done.returncode == 0, f"{done.stderr}\nPictures are in {PICTURES}."
    shown = json.loads(done.stdout)
    assert f"{EXERCISE}: not attempted yet" in shown["untouched"]
    assert f"{EXERCISE}: not yet" in shown["wrong"]
    assert "Two matrices are counted" in shown["wrong"]
    assert f"{EXERCISE}: passed" in shown["right"]
