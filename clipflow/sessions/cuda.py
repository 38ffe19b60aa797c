"""What becomes of CUDA in a process."""

from clipflow.sessions.base import Session


def is_lost(session: Session) -> bool:
    """Whether a session is on a GPU with which this process can do nothing any more.

    After some errors, such as a kernel that went astray or a card that fell off the bus, CUDA answers every call with
    the same error until the process ends (CUDA Runtime API, `cudaError_t`). All runtimes share that state.
    """
    if session.description['device'] != 'cuda':
        return False
    import torch

    try:
        torch.cuda.synchronize()
    except Exception:  # torch has several classes for it
        return True
    return False
