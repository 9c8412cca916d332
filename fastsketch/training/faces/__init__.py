"""The built-in data set: procedurally drawn faces, their pencil sketches and person masks."""

from fastsketch.training.faces.draw import Face, draw_face
from fastsketch.training.faces.folder import write_faces

__all__ = ["Face", "draw_face", "write_faces"]
