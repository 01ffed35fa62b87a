"""Where plain text comes from: the bundled English prose, files and folders, Hugging Face datasets."""

from mechlab.texts.passage import passages as passages

__all__ = ["passages"]
