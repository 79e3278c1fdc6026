"""Every notebook runs from top to bottom; each ends in an assertion on a scientific number."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.py"))


@pytest.mark.notebook
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings(
    "ignore"
)  # the notebook's own kernel decides; here only the client's warnings would show
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jupytext = pytest.importorskip("jupytext")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("SCILDM_TINY", "1")
    notebook = jupytext.read(path)
    assert len(notebook.cells) < 15
    assert any(
        cell.source.lstrip().startswith("assert") or "\nassert " in cell.source for cell in notebook.cells
    )
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
