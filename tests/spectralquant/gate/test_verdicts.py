"""Limits, fingerprints and verdicts of results files."""

import copy

import pytest

from spectralquant.errors import InputError
from spectralquant.files import write_json
from spectralquant.gate.limits import Limits, read_limits
from spectralquant.gate.metrics import metrics_of
from spectralquant.gate.run import judge, write_baseline
from spectralquant.results.files import read_results, results_file

FACTS = {"weights_sha256": "w", "data_sha256": "d", "dtype": "torch.float32", "device": "some CPU"}


def suite(**values):
    rows = [{"metric": name, **(v if isinstance(v, dict) else {"value": v})} for name, v in values.items()]
    return results_file("gate", rows, dict(FACTS), suite="smoke")


def verdicts(before, now, limits=None, **options):
    return {v.metric: v.verdict for v in judge(before, now, limits or Limits(), **options).verdicts}


@pytest.mark.parametrize(
    "name,before,now,wanted",
    [
        ("a/payload_ratio", 10.0, 9.8, "pass"),
        ("a/payload_ratio", 10.0, 9.6, "regression"),
        ("a/payload_ratio", 10.0, 20.0, "pass"),
        ("a/kl_nats", 0.01, 0.0109, "pass"),
        ("a/kl_nats", 0.01, 0.0112, "regression"),
        ("a/kl_nats", 1e-7, 1.9e-4, "pass"),
        ("a/coded_tokens", 636.0, 635.0, "regression"),
        ("a/coded_tokens", 636.0, 764.0, "regression"),
        ("a/relative_error", 0.2, 0.0, "regression"),
        ("a/correct", 1.0, 0.0, "regression"),
        ("a/kl_nats", 0.01, float("nan"), "regression"),
    ],
)
def test_figures_against_default_limits(name, before, now, wanted):
    assert verdicts(suite(**{name: before}), suite(**{name: now})) == {name: wanted}


def test_what_vanished_is_a_regression_and_what_is_new_is_not_compared():
    before, now = suite(**{"a/top1": 1.0}), suite(**{"b/top1": 1.0})
    assert verdicts(before, now) == {"a/top1": "regression", "b/top1": "not compared"}
    both = suite(**{"a/top1": 1.0, "b/top1": 1.0})
    assert judge(before, both, Limits()).code == 0 and judge(before, both, Limits()).counts()["not compared"] == 1
    assert (
        judge(suite(**{"a/seconds": {"samples": [1.0], "raw": True}}), both.updated(rows=both.rows[1:]), Limits()).code
        == 1
    )


@pytest.mark.parametrize(
    "row,message",
    [
        ({"metric": "a/top1", "value": "1.0"}, r"row 2, value: .*number \(it is '1.0'\)"),
        ({"metric": "a/top1", "value": True}, "row 2, value: .*number"),
        ({"metric": "a/top1", "value": [1.0]}, "row 2, value: .*number"),
        ({"metric": "a/top1", "value": 10**400}, "row 2, value"),
        ({"metric": "a/seconds", "samples": 3.0}, "row 2, samples: .*list"),
        ({"metric": "a/seconds", "samples": [1.0, None]}, "row 2, samples, row 2: .*number"),
        ({"metric": "a/seconds", "samples": [1.0, -1.0]}, "not positive"),
        ({"metric": 3, "value": 1.0}, "row 2, metric: .*string"),
        ({"value": 1.0}, "row 2, metric: .*required"),
        ({"metric": "a/top1", "value": 1.0, "error": 5}, "row 2, error: .*string"),
        ({"metric": "same", "value": 2.0}, "other figures in an earlier row"),
    ],
)
def test_a_malformed_row_is_refused_and_named(row, message, tmp_path):
    result = suite(same=1.0).as_json()
    result["rows"].append(row)
    write_json(tmp_path / "r.json", result)
    with pytest.raises(InputError, match=message):
        judge(suite(same=1.0), read_results(tmp_path / "r.json"), Limits())


def test_rows_with_the_same_name_are_kept_apart_or_refused():
    row = {"method": "spectral", "options": {"ages": {"cold": 1}}, "context": 8, "kl_nats": 0.1}
    other = {**row, "options": {"ages": {"cold": 2}}, "kl_nats": 0.2}
    assert len(metrics_of(results_file("compare", [row, other, dict(row)], dict(FACTS)))) == 2
    with pytest.raises(InputError, match=r"row 2: .*earlier row"):
        metrics_of(results_file("compare", [row, {**row, "kl_nats": 0.3}], dict(FACTS)))


def test_a_limit_that_matches_nothing_is_refused():
    before = suite(**{"a/kl_nats": 0.01})
    with pytest.raises(InputError, match=r"\[kl_nat\] matches no metric .*Did you mean 'kl_nats'"):
        judge(before, before, Limits((("kl_nat", {"relative": 0.1}), ("kl_nats", {"relative": 0.1}))))


def test_times_need_to_be_taken_in_turn():
    samples = {"samples": [1.0] * 10, "raw": True}
    both = suite(**{"t/seconds": samples}), suite(**{"t/seconds": samples})
    assert verdicts(*both) == {"t/seconds": "skipped"}
    assert judge(*both, Limits()).code == 3
    assert verdicts(*both, interleaved=True) == {"t/seconds": "pass"}


def test_ratios_of_one_process_are_judged_and_throttling_casts_doubt():
    before = suite(**{"k/time_over_dense": {"samples": [1.0, 1.01] * 6}})
    now = suite(**{"k/time_over_dense": {"samples": [1.2, 1.21] * 6}})
    assert verdicts(before, now) == {"k/time_over_dense": "regression"}
    hot = now.updated(telemetry={"verdict": {"conclusive": False, "why": "the device throttled: thermal (software)"}})
    outcome = judge(before, hot, Limits())
    assert outcome.code == 3 and "throttled" in outcome.verdicts[0].why


def test_many_slow_metrics_are_corrected_for_their_number():
    import numpy as np

    generator = np.random.default_rng(3)
    names = [f"op{i}/time_over_dense" for i in range(30)]
    draw = lambda by: {n: {"samples": list(by * (1 + 0.03 * generator.standard_normal(10)))} for n in names}  # noqa: E731
    # A true slowdown of exactly the limit: each metric alone is called a regression in 5 % of runs.
    outcome = judge(suite(**draw(1.0)), suite(**draw(1.05)), Limits())
    assert outcome.counts()["regression"] == 0


@pytest.mark.parametrize(
    "change,word",
    [
        ({"weights_sha256": "other"}, "model hash"),
        ({"data_sha256": "other"}, "data hash"),
        ({"dtype": "torch.bfloat16"}, "dtype"),
        ({"device": "NVIDIA H200", "driver": "580"}, "device"),
    ],
)
def test_another_fingerprint_is_inconclusive(change, word):
    before, now = suite(**{"a/top1": 1.0}), suite(**{"a/top1": 1.0})
    now["provenance"] = now["provenance"] | change
    outcome = judge(before, now, Limits())
    assert outcome.code == 3 and word in outcome.mismatch[0]
    assert [v.verdict for v in outcome.verdicts] == ["inconclusive"]


def test_two_gpus_differ_and_two_cpus_do_not():
    before, now = suite(**{"a/top1": 1.0}), suite(**{"a/top1": 1.0})
    now["provenance"]["device"] = "another CPU"
    assert judge(before, now, Limits()).code == 0
    before["provenance"] |= {"device": "NVIDIA H100", "cuda": "13.0"}
    now["provenance"] |= {"device": "NVIDIA H200", "cuda": "13.0"}
    assert judge(before, now, Limits()).code == 3


def test_results_of_other_commands_can_be_gated():
    row = {
        "method": "kivi",
        "options": {"bits": 4},
        "context": 2048,
        "payload_ratio": 3.1,
        "kl_nats": 0.002,
        "top1": 0.98,
    }
    compare = results_file("compare", [row, {"method": "x", "failed": "why"}], dict(FACTS))
    assert set(metrics_of(compare)) == {f"compare/kivi/bits=4/2048/{f}" for f in ("payload_ratio", "kl_nats", "top1")}
    worse = copy.deepcopy(compare)
    worse["rows"][0]["kl_nats"] = 0.004
    assert judge(compare, worse, Limits()).code == 1
    kernel = {
        "kernel": "spectral_decode",
        "batch": 1,
        "context": 2048,
        "bytes_read": 100,
        "correct": True,
        "speedup": 2.0,
        "baseline_time_us": 20.0,
        "time_samples": [10.0] * 10,
    }
    profile = results_file("profile", [kernel], dict(FACTS))
    assert {m.field for m in metrics_of(profile).values()} == {"bytes_read", "correct", "time_over_dense"}
    with pytest.raises(InputError, match="nothing that can be gated"):
        metrics_of(results_file("doctor", [{"check": "x", "status": "ok", "found": "y"}], {}))


def test_limits_from_a_file(tmp_path):
    file = tmp_path / "limits.toml"
    file.write_text('[kl_nats]\nrelative = 0.5\n["*/cold/kl_nats"]\nrelative = 0.01\nabsolute = 0\n')
    limits = read_limits(file)
    before = suite(**{"a/warm/kl_nats": 0.01, "a/cold/kl_nats": 0.01})
    now = suite(**{"a/warm/kl_nats": 0.014, "a/cold/kl_nats": 0.0102})
    assert verdicts(before, now, limits) == {"a/warm/kl_nats": "pass", "a/cold/kl_nats": "regression"}


@pytest.mark.parametrize(
    "text,message",
    [
        ("kl_nats = 3", "is no table"),
        ("[kl_nats]\nrelativ = 0.1", "Did you mean 'relative'"),
        ("[kl_nats]\nrelative = -0.1", "not negative"),
        ("[kl_nats]\nworse = 'sideways'", "one of up, down, both"),
        ("[kl_nats", "is not TOML"),
        ("\ufeff[kl_nats]\nrelative = nan", "not negative"),
    ],
)
def test_wrong_limits_are_refused(tmp_path, text, message):
    file = tmp_path / "limits.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_limits(file)


def test_a_baseline_is_not_written_over_a_dirty_tree(tmp_path):
    import subprocess

    git = lambda *a: subprocess.run(["git", "-C", str(tmp_path), *a], check=True, capture_output=True)  # noqa: E731
    git("init", "-q")
    git("config", "user.email", "a@b.c")
    git("config", "user.name", "n")
    (tmp_path / "code.py").write_text("1")
    git("add", ".")
    git("commit", "-qm", "one")
    target, result = tmp_path / "base.json", suite(**{"a/top1": 1.0})
    write_baseline(target, result, force=False)
    (tmp_path / "code.py").write_text("2")
    with pytest.raises(InputError, match=r"uncommitted changes .*code\.py"):
        write_baseline(target, result, force=False)
    write_baseline(target, result, force=True)


def test_a_broken_suite_is_no_baseline(tmp_path):
    broken = suite(**{"a/works": {"value": 0, "error": "ValueError: no"}})
    with pytest.raises(InputError, match="would never notice"):
        write_baseline(tmp_path / "base.json", broken, force=True)
    assert verdicts(suite(**{"a/works": 1.0}), broken) == {"a/works": "regression"}
