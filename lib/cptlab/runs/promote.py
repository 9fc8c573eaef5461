"""Moving what was trained or computed here into the committed layer: on purpose, and after a check."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from cptlab.errors import StoreError
from cptlab.files import atomic_write_with, sha256_file
from cptlab.identity import digest
from cptlab.runs.locks import guarded
from cptlab.runs.store import Store, write_json
from cptlab.runs.tables import MEASUREMENT_COLUMNS, table_text
from cptlab.runs.view import PROOF, View, agrees, base_name, proof, read_json, read_manifest, sample_key

BASE_WEIGHTS_LIMIT_BYTES = 60 * 2**20  # they are in the repository's history for ever
PROVENANCE = ("commit", "lock_sha256", "versions", "machine")
RECORDED = ("commit", "versions", "machine")  # of another computation


def promote(store: Store, name: str, weights: bool = False) -> list[str]:
    """Move a finished local record into the committed layer; what was done, in words.

    Args:
        name: id of a run, or name of another record (``laws/chinchilla-…``).
        weights: also commit the weights of the run's last step, for arms to start from.

    Raises:
        StoreError: there is nothing to move; a hash is not the recorded one; the record is not of the run it names or does not say what
            made it; or it would change something that is committed. Nothing has been moved then.
    """
    if store.committed is None:
        raise StoreError(f"{store.root} has no committed layer below it: unset CPTLAB_RUNS")
    return _computed(store, name) if "/" in name else _run(store, name, weights)


def upstreams_first(store: Store, names: Iterable[str]) -> list[str]:
    """The names, each once, with a run after those among them that it starts from."""
    names, ordered = list(dict.fromkeys(names)), []

    def place(name: str) -> None:
        try:
            upstreams = {} if "/" in name else store.record(name)["identity"]["upstreams"]
        except StoreError:  # to promote it says what is wrong
            upstreams = {}
        for upstream in upstreams.values():
            if upstream.get("run") in names and upstream["run"] not in ordered:
                place(upstream["run"])
        ordered.append(name)

    for name in names:
        if name not in ordered:
            place(name)
    return ordered


def _computed(store: Store, name: str) -> list[str]:
    source, target = store.root / f"{name}.json", store.committed / f"{name}.json"
    record = read_json(source, f"record {name}")
    _check_provenance(record, source, RECORDED)
    if record.get("record") != name:
        raise StoreError(f"{source} is the record {record.get('record')!r}: a record cannot be moved to another name")
    if target.exists():
        raise StoreError(f"{target} is committed already: delete the local one, {source}")
    atomic_write_with(target, lambda temporary: shutil.copyfile(source, temporary))
    source.unlink()
    return [f"{name}: record"]


def _check_provenance(record: dict, where: Path, fields: tuple[str, ...]) -> None:
    lacks = [field for field in fields if not record.get("provenance", {}).get(field)]
    if lacks:
        raise StoreError(f"{where}: its provenance lacks {', '.join(lacks)}: make it again in a git clone with the locked environment")


def _check(view: View) -> dict:
    """The record of a local view whose identity, provenance and weights hold."""
    record, where = view.record, view.home / "run.json"
    if record["status"] != "done":
        raise StoreError(f"{where}: the run has failed ({record['error']['type']}): only finished runs are promoted")
    content = record["spec"] | {"corpus": record["spec"]["corpus"]["fingerprint"], "recipe_version": record["identity"]["recipe_version"]}
    if (found := digest(content)[:16]) != view.run_id:
        raise StoreError(f"{where}: its spec is that of run {found}: the record was changed by hand, train the run again")
    _check_provenance(record, where, (*PROVENANCE, "corpus_shards"))
    for step in view.checkpoint_steps():
        checkpoint = view.checkpoint(step)
        checkpoint.verified()
        recorded = record["checkpoints"].get(str(step), {"sha256": checkpoint.sha256})["sha256"]
        if recorded != checkpoint.sha256:
            raise StoreError(f"{checkpoint.path}: sha256 is {checkpoint.sha256}, {where} says {recorded}: train the run again")
    return record


def _run(store: Store, run_id: str, weights: bool) -> list[str]:
    local, target = store.path(run_id), store.committed / run_id
    mine = View(run_id, (local,), "local")
    committed = View(run_id, (target,), "committed", store.committed / "base-weights")
    there = committed.status == "done"
    if there and not agrees(committed, local):
        raise StoreError(
            f"run {run_id} is committed with other weights or numbers than {local} has: a committed run is not changed. Delete the local "
            "folder, or remove the committed one on purpose first (git rm -r), with all that was made from it"
        )
    if not there and mine.home is None:
        raise StoreError(f"{local} holds no finished run: see `cptlab status`")
    record = _check(mine) if mine.home else committed.record
    if not there:
        _check_upstreams(store, record, local)
    both = View(run_id, (target, local) if there else (local,), "committed")
    said = []
    if weights:
        _commit_weights(store, run_id, record)
        said.append("weights")
    with guarded(local):
        rows, samples = both.measurement_rows(), both.samples()
        files = {"measurements.csv": table_text(rows, MEASUREMENT_COLUMNS, target / "measurements.csv")} if rows else {}
        new = len(rows) - (len(committed.measurement_rows()) if there else 0)
        for name, text in files.items():
            _write_text(target / name, text)
        if samples:
            write_json(target / "samples.json", sorted(samples, key=sample_key))
        if not there:
            for name in ("curve.csv", "run.json"):  # the record last: it says that the rest is there
                atomic_write_with(target / name, lambda temporary, name=name: shutil.copyfile(local / name, temporary))
            said.insert(0, "record")
        write_json(local / PROOF, {"of": proof(record)})  # what stays here, checkpoints, is of this record
        for name in ("run.json", "curve.csv", "measurements.csv", "samples.json"):
            (local / name).unlink(missing_ok=True)
    return [f"{run_id}: {', '.join([*said, f'{new} measurements'])}"]


def _write_text(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write_with(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _check_upstreams(store: Store, record: dict, where: Path) -> None:
    """A run is committed beside the runs that it started from, and beside these very weights of theirs."""
    for name, start in record["provenance"].get("upstream_weights", {}).items():
        if "run" not in start:
            continue
        above = View(start["run"], (store.committed / start["run"],), "committed", store.committed / "base-weights")
        if above.status != "done":
            raise StoreError(f"{where}: its {name}, run {start['run']}, is not committed: promote that first")
        known = above.record["checkpoints"].get(str(start["step"]), {}).get("sha256")
        if known not in (None, start["sha256"]):
            raise StoreError(
                f"{where}: it started from weights of its {name}, run {start['run']} step {start['step']}, that are not the committed "
                f"ones (sha256 {start['sha256'][:12]}, recorded {known[:12]}): train it from those"
            )


def _commit_weights(store: Store, run_id: str, record: dict) -> None:
    """Copy a local checkpoint of the last step to ``base-weights/`` and note its sha256 and bytes in the manifest."""
    step = record["summary"]["steps"]
    found = View(run_id, (store.path(run_id),), "local").checkpoint(step)
    target = store.committed / "base-weights" / base_name(run_id, step)
    if found is None:
        raise StoreError(f"the weights of run {run_id} step {step} are not in {store.root}: train it first")
    source, recorded = found.verified(), record["checkpoints"].get(str(step), {}).get("sha256")
    if recorded != found.sha256:
        raise StoreError(f"{source}: sha256 is {found.sha256}, the record of run {run_id} says {recorded}: these are other weights")
    with guarded(store.root):
        manifest = read_manifest(target.with_name("manifest.json"))
        known = manifest["files"].get(target.name)
        if known is not None and known["sha256"] != found.sha256:
            raise StoreError(f"{target} is committed with sha256 {known['sha256']}: committed weights are not changed")
        manifest["files"][target.name] = {"bytes": source.stat().st_size, "run": run_id, "sha256": found.sha256, "step": step}
        total = sum(entry["bytes"] for entry in manifest["files"].values())
        if total > BASE_WEIGHTS_LIMIT_BYTES:
            raise StoreError(
                f"{target.parent} would hold {total / 2**20:.1f} MiB, more than {BASE_WEIGHTS_LIMIT_BYTES / 2**20:.0f}: "
                "commit fewer or smaller base runs"
            )
        atomic_write_with(target, lambda temporary: shutil.copyfile(source, temporary))
        if sha256_file(target) != found.sha256:
            raise StoreError(f"{target} was not written whole: delete it and try again")
        write_json(target.with_name("manifest.json"), manifest)
