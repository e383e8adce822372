"""The web app, with Gradio: `pip install "stylegan-inversion[app]"`."""

from stylegan_inversion.webapp.app import build_app as build_app
from stylegan_inversion.webapp.app import launch as launch
from stylegan_inversion.webapp.app import launch_options as launch_options
