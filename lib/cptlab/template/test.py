"""The study 00_new_study runs at the smallest profile and shows its figure and its verdict; every profile can plan it."""

import nbformat
import pytest

from cptlab import claims, notebooks, paths, verdicts
from cptlab.study import profile_names

NAME, CLAIMS, FIGURES = "00_new_study", ["L0.1"], ["00_gain"]


def test_study_runs_at_smoke(tmp_path):
    [book] = notebooks.find([NAME])
    job = notebooks.Job(book.path, tmp_path / book.path.name, {"profile": "smoke"}, {"CPTLAB_PROGRESS": "0"})
    done = notebooks.execute(job)
    assert done.error is None, done.error
    for figure in FIGURES:
        assert all((paths.figures_dir() / f"{figure}.{ending}").is_file() for ending in ("png", "svg", "csv", "json"))
    outputs = [output for cell in nbformat.read(done.output, 4).cells for output in cell.get("outputs", ())]
    shown = "".join(output.get("data", {}).get("text/html", "") for output in outputs)
    for claim in CLAIMS:
        assert f"{claim}: {claims.wording(verdicts.saved()[claim]['verdict'])}" in shown


@pytest.mark.parametrize("profile", profile_names())
def test_study_can_be_planned(profile):
    [book] = notebooks.find([NAME])
    runs = notebooks.plan(book, {"profile": profile}).runs
    assert len(runs) > 1 and (runs["flops"] > 0).all()
