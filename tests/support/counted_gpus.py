"""GPUs that are only counted (`ray start --num-gpus` on a machine without one): where Ray assigns
one, Torch computes on the CPU. Imported by the workers of a cluster of `namespaces`."""

from __future__ import annotations

import torch
from ray.air._internal.device_manager.nvidia_gpu import CUDATorchDeviceManager

CUDATorchDeviceManager.get_devices = lambda manager: [torch.device("cpu")]
