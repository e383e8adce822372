"""The web app, with Gradio, which is an extra: "app"."""

from stylegan_inversion.errors import MissingDependencyError

try:
    import gradio  # noqa: F401  # with Starlette, pydantic and the others that the modules below need
except ImportError as e:
    raise MissingDependencyError.of_extra(f"The web app needs Gradio, which cannot be imported ({e}).", "app") from e

from stylegan_inversion.webapp.app import launch as launch
