"""The operation-level space: what sits on the edges of the ViT encoder, and how it is wired."""
