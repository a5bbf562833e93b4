"""Encoders: images (b, 3, h, w) in [0, 1] to embeddings (b, d), preprocessing included.

Any timm name works, with its own resizing, mean and standard deviation; so does any ``nn.Module``. The embedding
may join several layers of the network, and a neck may stand behind it.
"""

from steerable.encoders.encoder import Encoder, digest_of, evaluating
from steerable.encoders.layers import FINAL
from steerable.encoders.loading import PREFIX, classifier_of, load_encoder, resnet_width, small_stem
from steerable.encoders.neck import Neck
from steerable.encoders.pixels import check_pixels

__all__ = [
    "FINAL",
    "PREFIX",
    "Encoder",
    "Neck",
    "check_pixels",
    "classifier_of",
    "digest_of",
    "evaluating",
    "load_encoder",
    "resnet_width",
    "small_stem",
]
