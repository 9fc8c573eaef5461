"""How fast runs train here: from finished runs of the same shape, else from how fast the machine multiplies matrices. Imports no torch."""

import json
import statistics
from pathlib import Path

from cptlab import paths
from cptlab.runs.execution import Execution
from cptlab.runs.provenance import here
from cptlab.runs.request import Request
from cptlab.runs.store import Store
from cptlab.sweep.calibration import Calibration, calibration

GPU = 2e12  # FLOPs a second: a profile that expects as much is for an accelerator and is planned from its own number
# Share of the machine's matrix-product rate that compiled training reaches at a width, as the committed records of 32 to 160 show it.
UTILISATION, HALF_WIDTH = 0.62, 65.0
OVERHEAD_LAYER = 3.5e-3  # seconds a layer and micro-batch that uncompiled code waits for Python


class Speeds:
    """Seconds a token here, by run. Records are read once, and only where something has to be trained.

    Args:
        calibrate: measure the machine where records do not tell, some seconds once a day; else an earlier measurement serves, or the
            profile's number.
    """

    def __init__(self, store: Store, execution: Execution, calibrate: bool):
        self.execution, self.calibrate = execution, calibrate
        committed = {path.resolve() for path in (paths.runs_dir(), store.committed) if path}
        own = {path.resolve() for path in (paths.local_runs_dir(), store.root)} - committed
        # A committed record may name a machine like this one and be of another: cloud machines of one name differ by a third.
        self.records = [  # a run may be found twice: it has one speed
            found | {"own": layer in own and found["machine"] == here()}
            for layer in sorted(own | committed)
            for path in sorted({*layer.glob("*/run.json"), *layer.glob("*/*/run.json")})  # profiles have folders of their own
            if (found := _speed_record(path))
        ]
        self._known: dict[str, tuple[float, str]] = {}

    def of(self, request: Request, flops: float) -> tuple[float, str]:
        """Seconds a token of the run, and the basis; ``flops`` of its training."""
        spec = request.spec
        key = json.dumps([spec.canonical()["model"], spec.batch_tokens, spec.precision], sort_keys=True)
        if key not in self._known:
            self._known[key] = self._of(request, flops)
        return self._known[key]

    def same(self, request: Request) -> list[dict]:
        """Records of the same shape, trained the same way."""
        spec, how = request.spec, self.execution
        model = spec.canonical()["model"]
        wanted = (model, spec.batch_tokens, how.compile, how.ranks)
        return [found for found in self.records if (found["model"], found["batch_tokens"], found["compile"], found["ranks"]) == wanted]

    def _of(self, request: Request, flops: float) -> tuple[float, str]:
        spec, how = request.spec, self.execution
        records = self.same(request)
        if own := [found["tokens_per_s"] for found in records if found["own"]]:
            return 1 / statistics.median(own), "records here"
        measured = self._calibration()
        scaled = [found["tokens_per_s"] * measured.rate / found["matmul"] for found in records if measured and found["matmul"]]
        if scaled:
            return 1 / statistics.median(scaled), "records elsewhere, scaled"
        a_token = flops / spec.tokens_trained
        if not measured:
            return a_token / how.flops_per_second, "profile"
        width, layers = getattr(spec.model, "width", 0) or 1024, getattr(spec.model, "layers", 0) or 12
        seconds = a_token / (measured.rate * UTILISATION * width / (width + HALF_WIDTH))
        if not how.compile:
            seconds += OVERHEAD_LAYER * layers / (min(how.micro_batch, spec.batch) * spec.window)
        return seconds, "calibration"

    def _calibration(self) -> Calibration | None:
        how = self.execution
        return calibration(how.threads, how.compute, self.calibrate) if how.flops_per_second < GPU else None


def _speed_record(path: Path) -> dict | None:
    """What a finished record says of speed; None of others and of those that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        summary, made = found["summary"], found["provenance"]
        how = made["execution"]
        speed = {"model": found["spec"]["model"], "batch_tokens": found["spec"]["batch_tokens"], "tokens_per_s": summary["tokens_per_s"]}
        speed |= {"matmul": summary["matmul_flops_per_s"], "compile": how["compile"], "ranks": how["ranks"]}
        return speed | {"machine": made["machine"]} if summary["tokens_per_s"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
