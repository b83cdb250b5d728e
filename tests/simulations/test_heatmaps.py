"""The picture of a partition says when it is of the first clients alone."""

from run_folders import make_run

from simulations import heatmaps
from simulations.results import read


def picture(run):
    (chart,) = heatmaps.partitions([read(run.path)], ["run"])
    return chart


def test_of_very_many_clients_the_caption_says_that_the_first_are_shown(tmp_path):
    run = make_run(tmp_path / "run", rounds=1, clients=5)
    assert "on 5 clients: " in picture(run).caption
    told = run.read_json("partition.json")
    run.write_json("partition.json", {**told, "clients": 5, "counts": told["counts"][:3]})
    assert "on the first 3 of 5 clients: " in picture(run).caption
    run.write_json("partition.json", {**told, "clients": 5, "counts": told["counts"][:1]})
    assert "on the first 1 of 5 clients: " in picture(run).caption
