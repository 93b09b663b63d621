"""An operation of a user's own, registered from outside the package: `conv_k3`."""

from torch import Tensor, nn

from dasvit.spaces.cell.operations import register_operation


class TokenConv(nn.Module):
    """Pre-norm depthwise convolution along the tokens."""

    def __init__(self, dim: int, kernel: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"conv_k{kernel}: the kernel must be odd")
        self.norm = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.conv(self.norm(x).transpose(1, 2)).transpose(1, 2))


register_operation("conv", TokenConv, symbol="k", value_type=int, mixes_tokens=True)
