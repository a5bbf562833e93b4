"""Bundles: a model as one folder in the Hub's conventions, with checksums, never pickle.

config.json          timm's own Hub config where timm built the encoder, and a section "steerable"
model.safetensors    the encoder's weights under timm's (or the user's module's) key names
steering.safetensors the map's weights, the head's and the neck's
README.md            the model card; not under a checksum, so that it may be edited

Checksums find damage, not malice: who can write the folder can write them too. Against malice stand
safetensors, file names from a fixed list, and networks that only timm's registry builds.
"""

from steerable.bundle.layout import Parts
from steerable.bundle.reading import locate, read_bundle, rebuilding
from steerable.bundle.writing import write_bundle

__all__ = ["Parts", "locate", "read_bundle", "rebuilding", "write_bundle"]
