"""One thread of torch for the tests: several on busy cores spin at each other's barriers, many times as slow."""

import torch

torch.set_num_threads(1)
