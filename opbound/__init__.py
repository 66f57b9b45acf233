"""Says what limits every operator of a model on the hardware it will run on."""

from opbound._version import __version__

__all__ = ["__version__"]
