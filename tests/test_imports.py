from importlinter.cli import lint_imports


def test_imports_point_down() -> None:
    """The contracts stand in pyproject.toml."""
    assert lint_imports(no_cache=True) == 0
