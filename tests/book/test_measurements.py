"""Every result has its tables, with the numbers that the file holds, whoever made it."""

import json
from pathlib import Path

import pytest

from book import measurements
from book.text import BookError

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / measurements.RESULTS).glob("*.json"))


@pytest.fixture(scope="module")
def page() -> str:
    return measurements.page(ROOT)


def part_of(page: str, name: str) -> str:
    return next(p for p in page.split("\n## ") if f"results/{name}.json`" in p)


@pytest.mark.parametrize("name", NAMES)
def test_every_result_is_there_with_its_date_and_a_table(page, name):
    part, record = part_of(page, name), json.loads(
        (ROOT / measurements.RESULTS / f"{name}.json").read_text())
    assert str(record["date"]) in part
    assert "| --" in part or "|---" in part


@pytest.mark.parametrize("name", sorted(set(measurements.TABLES) & set(NAMES)))
def test_described_tables_have_no_empty_column(name):
    """A key that was renamed in a result would leave one."""
    record = measurements.records(ROOT)[name]
    for columns in measurements.TABLES[name]:
        found = record[columns.where]
        rows = [r for r in (found.values() if isinstance(found, dict) else found)
                if not measurements.is_open(r)]
        for path, _ in columns.columns:
            assert any(measurements.at(row, path) is not None for row in rows), path


def test_the_numbers_are_the_file_s(page):
    record = json.loads((ROOT / measurements.RESULTS / "decode.json").read_text())
    speed = record["engines"]["reference"]["tokens_per_second"]["8192"]
    assert f"| {speed:.4g} |" in part_of(page, "decode")


def write(root: Path, name: str, text: str) -> None:
    (root / measurements.RESULTS).mkdir(parents=True, exist_ok=True)
    (root / measurements.RESULTS / f"{name}.json").write_text(text)


def test_a_result_that_nobody_described_has_tables_too(tmp_path):
    gpu = {"name": "Some GPU", "memory": 2**36, "driver": "1.2"}
    write(tmp_path, "gpu_new", json.dumps({
        "date": "2030-01-02",
        "machine": {"gpus": [gpu], "cuda": {"version": "12.8", "usable": True}},
        "tokens": 512, "rate": 4.2764e12, "taken_by": "a long way " * 6 + "round",
        "checks": [{"part": "norm", "error": {"worst": 1.5e-7}, "passed": True}],
        "curves": {"a": {"seconds": [1.0, 2.0, 3.0]}}}))
    page = measurements.page(tmp_path)
    assert page.startswith("## GPU new")
    assert "2030-01-02; Some GPU, 64 GiB, driver 1.2; CUDA 12.8." in page
    assert "| tokens | 512 |" in page and "| rate | 4.276e+12 |" in page
    assert "Taken by: a long way a long way" in page and "| taken by |" not in page
    assert "| norm | 1.5e-07 | yes |" in page
    assert "| a | 2 (1 to 3) |" in page


def test_what_nobody_measured_shows_no_zeros(page):
    for line in page.splitlines():
        if "| open:" in line:
            assert "| 0 |" not in line


def test_a_check_that_nobody_ran_shows_its_name_and_no_numbers(tmp_path):
    check = {"section": "parts", "name": "norm", "precision": "float32", "count": 0, "error": 0.0,
             "bound": 0.0, "state": "open", "note": "no such type"}
    write(tmp_path, "gpu_check", json.dumps({"date": "2030-01-02", "checks": [
        check, check | {"count": 7, "error": 1e-7, "bound": 2e-7, "state": "holds"}]}))
    page = measurements.page(tmp_path)
    assert "| parts | norm | float32 |  |  |  | open | no such type |" in page
    assert "| parts | norm | float32 | 7 | 1.0e-07 | 2.0e-07 | holds | no such type |" in page


@pytest.mark.parametrize("text, said", [("{", "is no JSON"), ("[]", "holds no record but a list")])
def test_a_spoilt_result_is_a_sentence(tmp_path, text, said):
    write(tmp_path, "bad", text)
    with pytest.raises(BookError, match=said):
        measurements.page(tmp_path)


@pytest.mark.parametrize("number, shown", [
    (0.0, "0"), (1234567, "1,234,567"), (0.00012345, "1.2e-04"), (123456.7, "123,457"),
    (True, "yes"), (None, ""), ([2.0, 2.0], "2"), ([1.0, 3.0, 2.0], "2 (1 to 3)"), ("x", "x")])
def test_values(number, shown):
    assert measurements.value(number) == shown
