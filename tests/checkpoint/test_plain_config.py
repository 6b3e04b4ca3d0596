"""What describes a quantisation travels with it, and is left behind where plain numbers are written."""

import json

import pytest

from paramdelta_dist.checkpoint import open_checkpoint
from paramdelta_dist.checkpoint.config import render_config
from paramdelta_dist.checkpoint.plain_config import fields_of_quantisation, is_of_quantisation
from paramdelta_dist.storage import StorageConfig
from tests.giants import BLOCKS, sparse_model

SAID = {"quant_method": "x"}


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({"quantization_config": BLOCKS}, ("quantization_config",)),
        ({"compression_config": SAID, "text_config": {"quantization_config": SAID, "dtype": "bfloat16"}},
         ("compression_config", "text_config.quantization_config")),
        ({"quantization_config": BLOCKS, "expert_dtype": "fp4", "scale_fmt": "ue8m0"},
         ("quantization_config", "expert_dtype", "scale_fmt")),
        ({"quantization_config": None, "dtype": "bfloat16"}, ()),
        (None, ()),
    ],
)  # fmt: skip
def test_the_fields_that_describe_a_quantisation_are_named_and_written_out_no_more(config, fields):
    assert fields_of_quantisation(config) == fields
    if config is not None:
        plain = json.loads(render_config(json.dumps(config).encode(), "BF16", {}, fields))
        assert fields_of_quantisation(plain) == ()
        assert plain["torch_dtype" if "dtype" not in config else "dtype"] == "bfloat16"


def test_both_spellings_of_the_dtype_say_the_same_afterwards():
    data = json.dumps({"dtype": "float8_e4m3fn", "torch_dtype": "float16"}).encode()
    assert json.loads(render_config(data, "BF16", {})) == {"dtype": "bfloat16", "torch_dtype": "bfloat16"}


def test_files_that_describe_a_quantisation_are_side_files_of_the_model(tmp_path):
    folder = sparse_model(tmp_path / "m", [("a.weight", "BF16", (2, 2))], {"model_type": "toy"})
    for name in ("hf_quant_config.json", "quantize_config.json", "generation_config.json"):
        (folder / name).write_text("{}")
    side_files = open_checkpoint(str(folder), StorageConfig()).side_files
    assert [name for name in side_files if is_of_quantisation(name)] == ["hf_quant_config.json", "quantize_config.json"]
