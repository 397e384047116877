"""tweed: a VXLAN container network that carries packets, keeps itself right and explains itself."""

__version__ = "0.1.0"
