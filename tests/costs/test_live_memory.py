"""Live memory, counted by hand."""

import torch

from dasvit.costs.live_memory import LiveMemory


def test_live_memory_by_hand() -> None:
    with LiveMemory() as memory:
        a = torch.zeros(100)  # 400 bytes
        b = a + 1
        assert memory.live == 800
        view = b[10:]
        assert memory.live == 800
        del a
        assert memory.live == 400
        del b
        assert memory.live == 400  # the view holds it
        del view
    assert (memory.live, memory.peak) == (0, 800)
    with LiveMemory(512) as memory:
        held = torch.zeros(129)  # 516 bytes
        assert memory.live == 1024
    assert held.numel() == 129
