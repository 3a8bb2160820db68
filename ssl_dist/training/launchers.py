"""The variables by which launchers of parallel programs (mpirun, srun, torchrun, MPI on Azure) number their processes.

A run's workers are numbered by Ray. Where a command was called, or Ray was started, by a launcher, its variables would
tell DeepSpeed and torch.distributed another rank, another number of workers and another address.
"""

from __future__ import annotations

import os
import re

_OF_LAUNCHERS = re.compile(
    r"(OMPI|PMIX?|PRTE|MPIR?|I_MPI|MV2|HYDRA|SLURM|FLUX|PALS|TORCHELASTIC|TORCH_ELASTIC)_.*"
    r"|((LOCAL|GROUP|ROLE|NODE|CROSS)_)?(RANK|WORLD_SIZE)|(LOCAL|CROSS)_SIZE|MASTER_(ADDR|PORT)"
)


def forget_launcher() -> None:
    """Remove the variables of launchers from this process' environment; devices and network interfaces stay."""
    for name in filter(_OF_LAUNCHERS.fullmatch, list(os.environ)):
        del os.environ[name]
