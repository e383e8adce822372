import subprocess
import sys
from pathlib import Path


def test_imports_point_down() -> None:
    """The contracts stand in pyproject.toml. In a process of its own, since import-linter switches loggers off."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
