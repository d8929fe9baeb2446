"""Routers, figures and other rows of the registries from outside of this project: files and installed packages."""
