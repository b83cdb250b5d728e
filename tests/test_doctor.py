"""`fedsparse doctor`: nothing is left out, and what is missing is told with its remedy."""

import json
import re
import tomllib

import pytest

from fedsparse import doctor, node_requirements
from fedsparse.kernels import library, rule
from tests.command_line import ROOT, invoke

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def packages(requirements):
    return {re.split(r"[\[<>=~! ]", each, maxsplit=1)[0] for each in requirements}


def test_it_knows_every_dependency():
    brought = {"ray"}  # by flwr[simulation]
    assert set(doctor.REQUIRED) == packages(PROJECT["dependencies"]) | brought
    extras = {k: v for k, v in PROJECT["optional-dependencies"].items() if k not in ("dev", "node")}
    assert {k: set(v) for k, v in doctor.OPTIONAL.items()} == {
        k: packages(v) for k, v in extras.items()
    }


def test_a_light_node_needs_some_of_the_dependencies_and_in_the_same_versions():
    light = set(PROJECT["optional-dependencies"]["node"])
    everything = {each.replace("[simulation]", "") for each in PROJECT["dependencies"]}
    assert light < everything
    assert packages(light) == doctor.NODE
    assert "torch" not in doctor.NODE


def test_a_light_nodes_requirements_are_told_by_the_metadata(monkeypatch, capsys):
    told = ["torch>=2.4", 'numpy>=1.26; extra == "node"', "click>=8.1; extra == 'node'"]
    monkeypatch.setattr(node_requirements, "requires", lambda name: told)
    assert node_requirements.main() == 0
    assert capsys.readouterr().out == "click>=8.1\nnumpy>=1.26\n"
    monkeypatch.setattr(node_requirements, "requires", lambda name: None)
    assert node_requirements.main() == 1


@pytest.mark.parametrize(
    ("lacks", "kind"),
    [
        ((), "whole"),
        (("torch", "ray", "pyarrow"), "light node"),
        (("torch", "numpy"), "incomplete"),
        (("ray",), "incomplete"),
    ],
)
def test_it_tells_a_light_node_from_a_whole_and_a_broken_installation(lacks, kind, monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in lacks else "1")
    monkeypatch.setattr(doctor, "_needs", dict)
    assert doctor.examine()["kind"] == kind
    missing = [line for line in invoke("doctor").stdout.splitlines() if "missing  torch" in line]
    assert bool(missing) == ("torch" in lacks and kind != "light node")


def test_json_holds_versions_data_and_machine():
    result = invoke("doctor", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert {"torch", "flwr", "ray"} <= {*found["installed"], *found["unfit"]}
    assert {"digits", "fashion-mnist"} <= set(found["datasets"])
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_gib"] > 0
    assert found["machine"]["python"].startswith("3.")


def test_what_is_missing_is_told_with_what_it_disables(monkeypatch):
    installed = {"torch": "2.13.0", "flwr": "1.10.0"}
    monkeypatch.setattr(doctor, "_version", installed.get)
    monkeypatch.setattr(doctor, "_needs", lambda: {"torch": ">=2.4", "flwr": "~=1.41.0"})
    result = invoke("doctor")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert "  ok       torch 2.13.0" in lines
    assert "  unfit    flwr 1.10.0: fedsparse needs ~=1.41.0" in lines
    assert "  missing  plotly: disables report.html; pip install 'fedsparse[report]'" in lines
    assert "  missing  numpy: disables every run; pip install 'fedsparse'" in lines


def test_kernels_are_told_with_their_instruction_set_and_compiler(monkeypatch):
    try:
        expected = library.describe()
    except library.Unavailable as lacking:
        pytest.skip(str(lacking))
    monkeypatch.setattr(rule, "measured", lambda: rule.Rule(0.25, 0.5))
    told = json.loads(invoke("doctor", "--json").stdout)["kernels"]
    assert told == {**expected, "linear_below": 0.25, "conv_below": 0.5}
    named, compiler = expected["instruction_set"], expected["compiler"]
    line = (
        f"  ok       kernels for {named}, compiled by {compiler}; sparse below a density of "
        "0.25 (linear), 0.5 (convolution)"
    )
    assert line in invoke("doctor").stdout.splitlines()


@pytest.mark.parametrize(
    ("known", "remedy"),
    [
        ("", "install a C++ compiler and pip install --force-reinstall fedsparse"),
        ("unset FEDSPARSE_KERNELS", "unset FEDSPARSE_KERNELS"),
    ],
)
def test_without_kernels_it_says_what_is_lost(known, remedy, monkeypatch):
    def describe():
        raise library.Unavailable("the kernels are not here", known)

    monkeypatch.setattr(library, "describe", describe)
    monkeypatch.setenv("FEDSPARSE_KERNELS", "avx2")
    lost = "disables native training, runs use torch"
    line = f"  missing  kernels (the kernels are not here): {lost}; {remedy}"
    assert line in invoke("doctor").stdout.splitlines()


def test_fashion_mnist_is_found_where_it_lies(tmp_path, monkeypatch):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    (folder / "train-images-idx3-ubyte").write_bytes(b"")
    monkeypatch.setenv("FEDSPARSE_DATA", str(tmp_path))
    assert f"  data     fashion-mnist: {folder}" in invoke("doctor").stdout.splitlines()
