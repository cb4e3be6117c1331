"""Pictures: checked by content, freed of metadata."""

from server.pictures.jpeg import Picture, UnfitPicture, check

__all__ = ["Picture", "UnfitPicture", "check"]
