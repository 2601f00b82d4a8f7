"""The old name of `codetr_client`, for one release: the same modules under both names."""

import sys
import warnings

from codetr_client import *  # noqa: F403  # whatever it offers
from codetr_client import aio, client, detections, errors, files, images, wire
from codetr_client import drawing as draw

warnings.warn("`clients` is now `codetr_client`; the old name goes with the next release", DeprecationWarning, 2)

for _module in (aio, client, detections, errors, files, images, wire):
    sys.modules[_module.__name__.replace("codetr_client", __name__)] = _module
sys.modules[f"{__name__}.draw"] = draw
