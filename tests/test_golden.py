"""Every stored case of ../shared/golden has a test, or a reason why it has none.

A name is FILE for a file, or FILE:ARRAY for an array in an .npz.
"""

import ast
import json
import pathlib
from fnmatch import fnmatchcase

import golden
import numpy as np

# Names -> MODULE::TEST that reads them.
TESTS = {
    "adm/*/io.npz:*": "test_networks_adm::test_outputs_equal_the_official_network",
    "adm/*/state_dict.npz:*": "test_networks_adm::test_outputs_equal_the_official_network",
    "adm/*/state_dict.pt": (
        "test_checkpoints_formats::test_an_official_state_dict_gives_the_official_output"
    ),
    "cm_losses/c[dt]_*.npz:*": (
        "test_consistency_losses::test_consistency_losses_equal_the_official_ones"
    ),
    "cm_losses/edm.npz:*": "test_consistency_losses::test_edm_loss_equals_the_official_one",
    "cm_losses/params_student.npz:*": (
        "test_consistency_losses::test_consistency_losses_equal_the_official_ones"
    ),
    "cm_losses/progdist.npz:*": (
        "test_consistency_progressive::test_progressive_losses_equal_those_of_the_pytorch_code"
    ),
    "jcm_losses/c[dt]_*.npz:*": (
        "test_consistency_losses_jax::test_consistency_losses_equal_the_official_ones"
    ),
    "jcm_losses/continuous.npz:*": (
        "test_consistency_continuous::test_continuous_losses_equal_the_official_ones"
    ),
    "jcm_losses/edm_dsm.npz:*": (
        "test_consistency_losses_jax::test_edm_loss_equals_the_official_one"
    ),
    "jcm_losses/images.npz:*": (
        "test_consistency_losses_jax::test_edm_loss_equals_the_official_one"
    ),
    "jcm_losses/params_*.npz:*": (
        "test_consistency_losses_jax::test_consistency_losses_equal_the_official_ones"
    ),
    "jcm_losses/progdist.npz:*": (
        "test_consistency_progressive::test_progressive_losses_equal_the_official_ones"
    ),
    "karras/denoise.npz:weighting.*": (
        "test_consistency_losses::test_weightings_equal_the_official_ones"
    ),
    "karras/denoise.npz:[!w]*": (
        "test_consistency_parameterization::test_models_equal_the_official_ones"
    ),
    "karras/time_grids.npz:progdist_*": (
        "test_consistency_progressive::test_the_grid_of_the_student_is_the_official_one"
    ),
    "karras/time_grids.npz:[!p]*": (
        "test_consistency_schedules::test_grid_equals_that_of_the_official_losses"
    ),
    "manifests/adm_*.json": (
        "test_networks_adm::test_full_size_networks_have_the_official_parameters"
    ),
    "manifests/cifar10_ncsnpp.json": (
        "test_networks_ncsnpp::test_the_full_size_network_has_the_official_parameters"
    ),
    "ncsnpp/*/checkpoint_74": (
        "test_checkpoints_flax::test_official_files_hold_the_stored_parameters"
    ),
    "ncsnpp/*/edm_cifar10_ema": (
        "test_checkpoints_flax::test_official_files_hold_the_stored_parameters"
    ),
    "ncsnpp/*/io.npz:inter.*": "test_networks_ncsnpp::test_outputs_equal_the_official_network",
    "ncsnpp/*/io.npz:x": "test_networks_ncsnpp::test_outputs_equal_the_official_network",
    "ncsnpp/*/io.npz:t": "test_networks_ncsnpp::test_outputs_equal_the_official_network",
    "ncsnpp/*/io.npz:time_cond": "test_networks_ncsnpp::test_outputs_equal_the_official_network",
    "ncsnpp/*/io.npz:out": "test_networks_ncsnpp::test_outputs_equal_the_official_network",
    "ncsnpp/*/io.npz:[cdefs]*": (
        "test_networks_ncsnpp::test_consistency_function_and_denoiser_equal_the_official_ones"
    ),
    "ncsnpp/*/params.npz:*": "test_networks_ncsnpp::test_outputs_equal_the_official_network",
    "ncsnpp_modules/modules.npz:attn_wide.*": (
        "test_networks_ncsnpp::test_blocks_equal_the_official_ones"
    ),
    "ncsnpp_modules/modules.npz:resblock*": (
        "test_networks_ncsnpp::test_blocks_equal_the_official_ones"
    ),
    "ncsnpp_modules/modules.npz:pyr_down.*": (
        "test_networks_ncsnpp::test_blocks_equal_the_official_ones"
    ),
    "ncsnpp_modules/modules.npz:gn_*": (
        "test_networks_ncsnpp::test_normalisation_equals_the_official_one"
    ),
    "ncsnpp_modules/modules.npz:fir.[!u]*": (
        "test_networks_ncsnpp::test_filters_equal_the_official_ones"
    ),
    "ncsnpp_modules/modules.npz:fir.upsample_2d": (
        "test_networks_ncsnpp::test_filters_equal_the_official_ones"
    ),
    "ncsnpp_modules/modules.npz:fourier.*": (
        "test_networks_ncsnpp::test_fourier_features_equal_the_official_ones"
    ),
    "ncsnpp_modules/modules.npz:resize224.*": (
        "test_consistency_distances::test_the_enlargement_equals_the_official_one"
    ),
    "samplers/samplers.npz:onestep.*": (
        "test_consistency_samplers::test_stages_equal_the_official_sampler"
    ),
    "samplers/samplers.npz:multistep_*": (
        "test_consistency_samplers::test_stages_equal_the_official_sampler"
    ),
    "samplers/samplers.npz:heun_*": (
        "test_consistency_solvers::test_solutions_equal_the_official_sampler"
    ),
    "samplers/samplers.npz:euler_*": (
        "test_consistency_solvers::test_solutions_equal_the_official_sampler"
    ),
    "samplers/samplers.npz:progdist_*": (
        "test_consistency_solvers::test_progressive_distillations_sampler_equals_the_official_one"
    ),
    "schedules/cifar10_ct.npz:*": (
        "test_consistency_schedules::test_schedule_equals_the_released_jax_one_but_for_float32"
    ),
    "schedules/imagenet64_ct.npz:*": (
        "test_consistency_schedules::test_schedules_equal_the_released_pytorch_ones"
    ),
    "schedules/lsun256_ct.npz:*": (
        "test_consistency_schedules::test_schedules_equal_the_released_pytorch_ones"
    ),
    "schedules/*_progdist.npz:*": (
        "test_consistency_progressive::test_the_number_of_steps_is_the_official_one"
    ),
}
# Names -> why there is no test.
REASONS = {
    "*/meta*.json": "describes the other files of its folder",
    "metrics/*": "no case of networks, losses, samplers or schedules: test_metrics_*.py",
    "ncsnpp_modules/modules.npz:fir.upsample_conv_2d": (
        "a layer that no released configuration has: all upsample within a residual block"
    ),
    "ncsnpp_modules/modules.npz:positional.*": (
        "an embedding that no released configuration has: all use Fourier features"
    ),
}


def names() -> list[str]:
    """All files and arrays."""
    found = []
    for path in sorted(p for p in golden.path("").rglob("*") if p.is_file()):
        name = path.relative_to(golden.FOLDER).as_posix()
        if path.suffix != ".npz" or name.startswith("metrics/"):
            found.append(name)
            continue
        with np.load(path, allow_pickle=False) as file:
            found += [f"{name}:{array}" for array in file.files]
    return found


def test_every_stored_case_has_one_test_or_a_reason() -> None:
    patterns = [*TESTS, *REASONS]
    matches = {name: [p for p in patterns if fnmatchcase(name, p)] for name in names()}
    assert len(matches) > 2000
    assert {name: m for name, m in matches.items() if len(m) != 1} == {}
    assert set(patterns) == {p for m in matches.values() for p in m}  # none is out of date


def test_the_tests_exist_and_read_stored_cases() -> None:
    for where in set(TESTS.values()):
        module, _, function = where.partition("::")
        source = pathlib.Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
        [found] = [
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        assert "golden" in ast.unparse(found), where


def test_the_reasons_hold() -> None:
    """In the configuration that all released CIFAR-10 models share."""
    manifest = json.loads(golden.path("manifests/cifar10_ncsnpp.json").read_text("utf-8"))
    assert manifest["identical_for_all_configs"] and len(manifest["configs"]) == 6
    config = manifest["model_config"]
    assert config["embedding_type"] == "fourier"
    # Neither a pyramid of outputs nor a resampling layer outside of a residual block.
    assert (config["progressive"], config["resblock_type"]) == ("none", "biggan")
