"""`import dasvit.models` makes our networks known to timm: `timm.create_model("dasvit", …)`."""

import dasvit.training.networks  # noqa: F401

__all__: list[str] = []
