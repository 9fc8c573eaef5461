"""Doing what a store lacks of a request, in this process, and what becomes of a run that fails or comes to other numbers."""

import warnings
from dataclasses import replace

import torch.distributed as dist

from cptlab.runs.execution import Execution
from cptlab.runs.lacking import Lacking
from cptlab.runs.record import failed_record
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.training import stopping
from cptlab.training.evaluation import measure_checkpoints
from cptlab.training.trainer import OtherTrajectory, Training


def train_or_evaluate(request: Request, store: Store, execution: Execution, wanted: Lacking, lock=None) -> str:
    """Do what the store lacks of ``request``, ``wanted``, in this process (all ranks call it); returns the run's status.

    A failure becomes a record with status ``failed``. Interrupts and the wish to stop pass through and leave the state to resume from.
    """
    if wanted.train:
        _train(request, store, execution, wanted, lock)
    elif wanted:
        measure_checkpoints(request, store, execution, wanted)
    return store.ended(request.id)


def _train(request: Request, store: Store, execution: Execution, wanted: Lacking, lock) -> None:
    run = None
    try:
        run = Training(request, store, execution, wanted, lock)
        try:
            with stopping.after_a_step():
                run.train()
        except OtherTrajectory as left:
            run.engine.close()
            run = None
            _begin_other(request, store, left.step)
            wanted = replace(wanted, record=True)
            run = Training(request, store, execution, wanted, lock)
            with stopping.after_a_step():
                run.train()
        with stopping.after_a_step():  # a record half written is no record
            run.finish()
    except Exception as error:  # a run that fails is a record; the sweep goes on
        others = lock is not None and not lock.is_ours()  # another owner took the run over: the record is its to write
        if others or not wanted.record or (dist.is_initialized() and dist.get_rank() != 0):
            raise
        store.write_record(request.id, failed_record(request, type(error).__name__, str(error)[:2000], run.step if run else None))
    finally:
        if run is not None:
            run.engine.close()


def _begin_other(request: Request, store: Store, step: int) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        warnings.warn(
            f"run {request.id}, trained again here for what its record lacks, gives other numbers from step {step} on: another processor "
            "or library version rounds differently. The recorded run stays as it is; this one is trained whole and kept beside it",
            stacklevel=2,
        )
        store.clear_state(request.id)
        store.start_other(request.id)
    if dist.is_initialized():
        dist.barrier()
