from typing import Any

import torch

class AugmentPipe(torch.nn.Module):
    p: torch.Tensor
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
