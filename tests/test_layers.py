"""The shape of the code: who imports whom, and how long things may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("sciLDM", "domains") for path in (ROOT / folder).glob("**/*.py"))

FILE_LINES = 400
FUNCTION_LINES = 60
CLASS_LINES = 250
CONSTRUCTOR_ARGUMENTS = 8
Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_imports_follow_the_layers() -> None:
    command = [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command as run; run()",
        "--no-cache",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def offences(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if (lines := len(text.splitlines())) > FILE_LINES:
        yield f"{lines} lines, at most {FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Function | ast.ClassDef):
            # Documentation is not what makes a function hard to follow: a docstring's lines do not count.
            documented = node.body[0] if ast.get_docstring(node) is not None else None
            prose = 0 if documented is None else documented.end_lineno - documented.lineno + 1
            lines = node.end_lineno - node.lineno + 1 - prose
            limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            if lines > limit:
                yield f"{node.name} (line {node.lineno}): {lines} lines, at most {limit}"
        if isinstance(node, ast.ClassDef):
            yield from constructor_offences(node)


def constructor_offences(node: ast.ClassDef) -> Iterator[str]:
    """Dataclasses write their own constructor and have no function here to count."""
    for method in node.body:
        if isinstance(method, Function) and method.name == "__init__":
            arguments = method.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - 1  # without self
            if count > CONSTRUCTOR_ARGUMENTS:
                yield f"{node.name}(...) takes {count} arguments, at most {CONSTRUCTOR_ARGUMENTS}"


def test_nothing_grows_too_long() -> None:
    found = [f"{path.relative_to(ROOT)}: {what}" for path in SOURCES for what in offences(path)]
    assert not found, "\n".join(found)


def test_the_check_itself_finds_offences(tmp_path: Path) -> None:
    names = ", ".join(f"a{i}" for i in range(CONSTRUCTOR_ARGUMENTS + 1))
    long = f"class Long:\n    def __init__(self, {names}):\n" + "        self.x = 1\n" * FILE_LINES
    (tmp_path / "long.py").write_text(long)
    found = " ".join(offences(tmp_path / "long.py"))
    assert "Long(...) takes 9 arguments" in found
    assert "__init__ (line 2): 401 lines" in found
    assert "Long (line 1): 402 lines" in found
    assert "402 lines, at most 400" in found


def test_modules_say_what_is_public() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not path.name.startswith("_") and "\n__all__" not in path.read_text(encoding="utf-8")
    ]
    assert not silent, f"no __all__ in {silent}"
