"""What the GPU benchmarks do without a GPU: say so, and judge what others measured."""

import pytest
import torch

from benchmarks import gpu_clock, gpu_decode, gpu_training, records


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("benchmark", [gpu_decode, gpu_training])
def test_without_a_gpu_it_is_one_sentence_and_no_file(monkeypatch, tmp_path, capsys, benchmark):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    assert benchmark.main(["--record"]) == 1
    assert capsys.readouterr().out == f"{gpu_clock.need_a_gpu()}\n"
    assert not list(tmp_path.iterdir())


def test_a_share_of_the_limit_is_of_the_larger_of_the_two_times():
    rates = {"copy_bytes_a_second": 4e12, "bfloat16_flops_a_second": 8e14}
    line = {"milliseconds": 2.0, "bytes": 4e9, "flops": 8e10}
    assert gpu_clock.share(line, rates) == pytest.approx(0.5)
    assert gpu_clock.share(line | {"flops": 8e11}, rates) == pytest.approx(0.5)
    assert gpu_clock.share(line | {"flops": 1.6e12}, rates) == pytest.approx(1.0)


def decoded(ours, theirs):
    return {"limit_tokens_a_second": 800.0, "ways": {
        "recorded": {"tokens_a_second": ours}, "recorded and fused": {"tokens_a_second": 9.0},
        "transformers, grouped_mm": {"tokens_a_second": theirs}}}  # fmt: skip


@pytest.mark.parametrize(("ours", "theirs", "status"), [(400, 50, 0), (399, 40, 1), (400, 51, 1)])
def test_decoding_is_judged_by_both_promises(ours, theirs, status):
    assert gpu_decode.judge(decoded(ours, theirs)) == status


@pytest.mark.parametrize(("use", "ours", "share", "status"), [
    (0.35, 400, 0.12, 0), (0.34, 400, 0.12, 1), (0.35, 399, 0.12, 1), (0.35, 400, 0.121, 1),
])  # fmt: skip
def test_training_is_judged_by_all_promises(use, ours, share, status):
    record = {"sides": {
        "adamw": {"utilisation": use, "tokens_a_second": ours},
        "muonclip": {"optimizer_share": share},
        "transformers, adamw": {"tokens_a_second": 100}}}  # fmt: skip
    assert gpu_training.judge(record) == status
