import zipfile
from typing import Any

import numpy as np
import torch.utils.data

class Dataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __len__(self) -> int: ...
    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]: ...
    def get_label(self, idx: int) -> np.ndarray: ...
    def get_details(self, idx: int) -> Any: ...
    name: str
    image_shape: list[int]
    num_channels: int
    resolution: int
    label_shape: list[int]
    label_dim: int
    has_labels: bool
    def __getattr__(self, name: str) -> Any: ...

class ImageFolderDataset(Dataset):
    _zipfile: zipfile.ZipFile | None
    def _get_zipfile(self) -> zipfile.ZipFile: ...
