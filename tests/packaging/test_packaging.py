"""What is installed is what lies in the folders, under the names we mean, and works from anywhere."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

EXTENSIONS = {".py", ".typed", ".yaml", ".md", ".json", ".safetensors"}


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def python(code: str, cwd: Path, interpreter: str | Path = sys.executable, path: str | None = None) -> str:
    """Runs `code` in a fresh interpreter, started in `cwd`, and returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | (
        {"PYTHONPATH": path} if path else {}
    )
    done = subprocess.run(
        [str(interpreter), "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def folders(root: Path) -> set[str]:
    """Names of all packages in the checkout: the folders with Python files, under setuptools' mapping."""
    found = {"sciLDM._cards", "sciLDM._configs"}
    for name, folder in (("sciLDM", root / "sciLDM"), ("sciLDM.domains", root / "domains")):
        for path in folder.glob("**/*.py"):
            parts = path.parent.relative_to(folder).parts
            if name == "sciLDM" and parts[:1] == ("domains",):
                continue  # the link for static tools; the folder itself is counted below
            found.add(".".join((name, *parts)))
    return found


def test_package_list_equals_the_folders(root: Path, project: dict) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    assert listed == sorted(listed)
    assert set(listed) == folders(root)


def test_every_package_has_an_init(root: Path, project: dict) -> None:
    for name in set(project["tool"]["setuptools"]["packages"]) - {"sciLDM._cards", "sciLDM._configs"}:
        folder = root / name.replace("sciLDM.domains", "domains").replace(".", "/")
        assert (folder / "__init__.py").is_file(), (
            f"{name}: the editable install serves no folder without __init__.py"
        )


def test_datasets_holds_no_code(root: Path) -> None:
    """A package called `datasets` at the top would hide, or overwrite, the one of Hugging Face."""
    assert not list((root / "datasets").glob("**/__init__.py"))


def test_import_datasets_is_not_ours(root: Path) -> None:
    # A folder without __init__.py loses to any installed package, and has no origin when there is none.
    code = "import importlib.util as u; s = u.find_spec('datasets'); print(s.origin if s else None)"
    origin = python(code, root)
    assert origin == "None" or not Path(origin).is_relative_to(root / "datasets")


def test_domains_has_one_name(root: Path) -> None:
    if not (root / "domains/molecules/__init__.py").is_file():
        pytest.skip("no molecules adapter yet")
    pytest.importorskip("rdkit")
    code = "import sys, sciLDM.domains.molecules; print('domains' in sys.modules)"
    assert python(code, root, path=str(root)) == "False"


def test_constraints_pin_every_dependency(root: Path, project: dict) -> None:
    from packaging.requirements import Requirement

    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in pins)
    pinned = {pin.name.lower(): next(iter(pin.specifier)).version for pin in pins}
    extras = project["project"]["optional-dependencies"]
    wanted = project["project"]["dependencies"] + [
        r for e in ("molecules", "dev", "notebooks", "wandb") for r in extras[e]
    ]
    for requirement in map(Requirement, wanted):
        assert pinned[requirement.name.lower()] in requirement.specifier, (
            f"{requirement} and its pin disagree"
        )


@pytest.mark.slow
def test_wheel_works_elsewhere(root: Path, project: dict, tmp_path: Path) -> None:
    """Builds the wheel, installs it beside this environment's libraries, uses it from another folder."""
    copy = tmp_path / "checkout"  # a build leaves folders behind
    copy.mkdir()
    names = ["pyproject.toml", "README.md", "LICENSE", "sciLDM", "domains", "datasets", "configs"]
    subprocess.run(["cp", "-a", *(str(root / name) for name in names), str(copy)], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(copy)],
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    interpreter = environment / "bin/python"
    install = [str(interpreter), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # This environment's libraries without its editable sciLDM: entries of PYTHONPATH run no .pth files.
    libraries = os.pathsep.join(p for p in sys.path if p.endswith("site-packages"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    code = """
import sys, pathlib, importlib.metadata
import sciLDM, sciLDM.domains
from sciLDM.data.cards import card, cards
for module in (sciLDM, sciLDM.domains):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
assert {"ncep_slp", "msd_hippocampus", "qm9"} <= set(cards()) and card("qm9").files
assert "domains" not in sys.modules and "datasets" not in sys.modules
[entry] = importlib.metadata.entry_points(group="sciLDM.domains", name="molecules")
print(entry.load().__name__)
"""
    expected = project["project"]["entry-points"]["sciLDM.domains"]["molecules"].split(":")[1]
    site = python("import site; print(site.getsitepackages()[0])", elsewhere, interpreter)
    # The wheel's own folder first: the running environment may hold the metadata of another version.
    assert python(code, elsewhere, interpreter, path=os.pathsep.join([site, libraries])) == expected

    installed = {
        p.relative_to(site).as_posix() for p in Path(site, "sciLDM").glob("**/*") if p.suffix in EXTENSIONS
    }
    ours = {
        path.relative_to(root)
        .as_posix()
        .replace("datasets/", "sciLDM/_cards/")
        .replace("configs/", "sciLDM/_configs/")
        for folder in ("sciLDM", "datasets", "configs")
        for path in (root / folder).glob("**/*")
        if path.is_file()
        and path.suffix in EXTENSIONS
        and path.parent not in (root / "datasets", root / "configs")
    } | {
        "sciLDM/domains/" + p.relative_to(root / "domains").as_posix()
        for p in (root / "domains").glob("**/*.py")
    }
    assert {p for p in ours if "__pycache__" not in p} == {p for p in installed if "__pycache__" not in p}
