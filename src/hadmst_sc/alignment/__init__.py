"""Registration of the whole image: position of the H&E relative to the spots, estimated from the counts.

The spatial alignment module of the network, which bends what is left, is :mod:`hadmst_sc.models.alignment`.
"""

from hadmst_sc.alignment.record import Alignment, Field, align_image, align_spots

__all__ = ["Alignment", "Field", "align_image", "align_spots"]
