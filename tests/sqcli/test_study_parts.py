"""Parts and options that would be passed over are refused before a model, a profile or a text is read."""

from __future__ import annotations

import pytest
from commands_for_tests import sq

from research.cold_speed.parts import PARTS as COLD_SPEED
from research.headline.study import STAGES
from research.quality.study import PARTS as QUALITY
from research.scale.study import PARTS as SCALE
from research.serving.study import PARTS as SERVING
from sqcli.refusals.study_parts import PARTS


def test_the_names_are_those_of_the_studies():
    ours = {
        "quality": QUALITY,
        "headline": STAGES,
        "calibrate-scale": SCALE,
        "cold-speed": tuple(COLD_SPEED),
        "serving": SERVING,
    }
    assert ours == {name: PARTS[name] for name in ours}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gate", "--part", "x"), "The gate study has no parts: leave out --part x."),
        (("index", "--part", "cpu", "--profile", "none"), "The index study has no parts"),
        (("cold-speed", "--part", "cdec", "--profile", "none"), "no part 'cdec'; there are codec, coders"),
        (("serving-hot", "--part", "bogus"), "no part 'bogus'; there are small, large."),
        (
            ("serving-hot", "--part", "large", "--profile", "none"),
            "--profile has no effect on the large part of serving-hot, which makes those of its shape",
        ),
        (("cold-speed", "--part", "cpu:1", "--profile", "none"), "no part 'cpu:1'"),
    ],
)
def test_a_part_that_a_study_lacks_is_refused(words, said, tmp_path, capsys):
    assert sq("study", *words, "--out", tmp_path / "r.json") == 2
    assert said in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("spectral:exact_bits=4", "exact_bits=4 is not one of 8, 16"),
        ("h2o+spectral:exact_bits=4", "exact_bits=4 is not one of 8, 16"),
        ("spectral:tier=luke", "tier='luke' is not one of cold, warm, hot"),
        ("spectral:tier=hot,bound=0.01", "belong to the cold tier, not to hot"),
        ("h2o+spectral:tier=warm,adaptive_tables=true", "belong to the cold tier, not to warm"),
        ("spectral:bound=0", "bound=0 is not a KL above 0"),
        ("spectral:bound=nan", "bound=nan is not a KL above 0"),
        ("turboquant:variant=prod,bits=1.5", "variant=prod needs at least 2 bits"),
        ("h2o+snapkv:keep=0.5", "compose an evicting method with a codec"),
        ("turboquant:bits=3,bits=4", "gives bits twice. Several values are several methods: turboquant:bits=…"),
        ("spectral:tier=hot,exact_bits=4", "exact_bits=4 is not one of 8, 16"),
        ("spectral:tier=warm,exact_bits=0", "exact_bits=0 is not one of 8, 16"),
    ],
)
def test_options_of_methods_are_judged_before_a_profile_is_read(spec, said, tmp_path, capsys):
    assert sq("compare", spec, "--profile", tmp_path / "none") == 2
    assert said in " ".join(capsys.readouterr().err.split())
