"""Quantised matrices become logical tensors: told by their siblings, with blocks that the config names and the scales confirm."""

import pytest

from paramdelta_dist.checkpoint import compare, open_checkpoint, open_checkpoints
from paramdelta_dist.checkpoint.encoded import with_logical, with_logical_tensors
from paramdelta_dist.checkpoint.quantised import find_quantised
from paramdelta_dist.checkpoint.room import Room
from paramdelta_dist.errors import CheckpointError, OverBudget
from paramdelta_dist.kernels.encodings import Scaled
from paramdelta_dist.storage import StorageConfig
from tests.giants import sparse_model

BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def compressed(bits, kind, strategy, **more):
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True, **more}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


INT4 = compressed(4, "int", "group", group_size=32)


def tensors(*parts):
    """Of one matrix, by (name, dtype, shape)."""
    return [("m.norm.weight", "BF16", (64,)), *parts, ("m.last.weight", "BF16", (64, 64))]


def opened(path, parts, config=None, **more):
    """The checkpoint with logical tensors, of a config with this quantisation."""
    config = {"model_type": "toy"} | ({"quantization_config": config} if config else {}) | more
    return with_logical_tensors(open_checkpoint(str(sparse_model(path, tensors(*parts), config)), StorageConfig()))


def weight(dtype, *shape, end=".weight"):
    return f"m.a{end}", dtype, shape


SCHEMES = {
    "blocks with ragged edges": (
        BLOCKS, [weight("F8_E4M3", 576, 200), weight("F32", 5, 2, end=".weight_scale_inv")],
        Scaled("e4m3", 128, 128, "F32"), (576, 200)
    ),
    "blocks larger than the matrix": (
        BLOCKS, [weight("F8_E4M3", 64, 32), weight("F32", 1, 1, end=".weight_scale_inv")], Scaled("e4m3", 128, 128, "F32"), (64, 32)
    ),
    "blocks of other sizes": (
        BLOCKS | {"weight_block_size": [64, 32]}, [weight("F8_E4M3", 65, 33), weight("BF16", 2, 2, end=".weight_scale_inv")],
        Scaled("e4m3", 64, 32, "BF16"), (65, 33)
    ),
    "scales that are powers of two in F32": (
        BLOCKS | {"scale_fmt": "ue8m0"}, [weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv")],
        Scaled("e4m3", 128, 128, "F32", powers_of_two=True), (256, 128)
    ),
    "scales that are exponents": (
        BLOCKS, [weight("F8_E4M3", 256, 128), weight("F8_E8M0", 2, 1, end=".scale")], Scaled("e4m3", 128, 128, "E8M0"), (256, 128)
    ),
    "scales that are exponents in U8": (
        BLOCKS, [weight("F8_E4M3", 256, 128), weight("U8", 2, 1, end=".weight_scale_inv")], Scaled("e4m3", 128, 128, "E8M0"), (256, 128)
    ),
    "scales as Mistral spells them": (
        None, [weight("F8_E4M3", 256, 128), weight("F32", end=".qscale_weight"), weight("F32", end=".qscale_act")],
        Scaled("e4m3", 0, 0, "F32"), (256, 128)
    ),
    "experts in one tensor": (
        BLOCKS, [weight("F8_E4M3", 4, 200, 130, end=".gate_up_proj"), weight("F32", 4, 2, 2, end=".gate_up_proj_scale_inv")],
        Scaled("e4m3", 128, 128, "F32"), (4, 200, 130)
    ),
    "blocks of compressed-tensors": (
        compressed(8, "float", "block", block_structure=[128, 128]),
        [weight("F8_E4M3", 200, 128), weight("BF16", 2, 1, end=".weight_scale")], Scaled("e4m3", 128, 128, "BF16"), (200, 128)
    ),
    "channels of compressed-tensors": (
        compressed(8, "float", "channel"), [weight("F8_E4M3", 200, 128), weight("BF16", 200, 1, end=".weight_scale")],
        Scaled("e4m3", 1, 0, "BF16"), (200, 128)
    ),
    "a scale for the tensor, with one for activations": (
        compressed(8, "float", "tensor"),
        [weight("F8_E4M3", 200, 128), weight("BF16", 1, end=".weight_scale"), weight("BF16", 1, end=".input_scale")],
        Scaled("e4m3", 0, 0, "BF16"), (200, 128)
    ),
    "groups of fp8": (
        compressed(8, "float", "group", group_size=64), [weight("F8_E4M3", 200, 128), weight("F16", 200, 2, end=".weight_scale")],
        Scaled("e4m3", 1, 64, "F16"), (200, 128)
    ),
    "rows of FBGEMM": (
        {"quant_method": "fbgemm_fp8"}, [weight("F8_E4M3", 200, 128), weight("F32", 200, 1, end=".weight_scale")],
        Scaled("e4m3", 1, 0, "F32"), (200, 128)
    ),
    "static scales of Mistral": (
        {"quant_method": "fp8", "weight_block_size": None},
        [weight("F8_E4M3", 200, 128), weight("BF16", end=".weight_scale_inv"), weight("BF16", end=".activation_scale")],
        Scaled("e4m3", 0, 0, "BF16"), (200, 128)
    ),
    "rows of ModelOpt, of one dimension": (
        {"quant_method": "modelopt"}, [weight("F8_E4M3", 200, 128), weight("F32", 200, end=".weight_scale")],
        Scaled("e4m3", 1, 0, "F32"), (200, 128)
    ),
    "one scale for each expert": (
        None, [weight("F8_E4M3", 4, 200, 128, end=".up"), weight("F32", 4, 1, 1, end=".up_scale_inv")],
        Scaled("e4m3", 200, 0, "F32"), (4, 200, 128)
    ),
    "MXFP8": (
        None, [weight("F8_E4M3", 200, 128), weight("U8", 200, 4, end=".weight_scale")], Scaled("e4m3", 1, 32, "E8M0"), (200, 128)
    ),
    "MXFP4 of gpt-oss": (
        {"quant_method": "mxfp4"}, [weight("U8", 4, 200, 3, 16, end=".down_proj_blocks"), weight("U8", 4, 200, 3, end=".down_proj_scales")],
        Scaled("e2m1", 1, 32, "E8M0"), (4, 200, 96)
    ),
    "MXFP4 of DeepSeek-V4": (
        BLOCKS | {"scale_fmt": "ue8m0"}, [weight("I8", 200, 64), weight("F8_E8M0", 200, 4, end=".scale")],
        Scaled("e2m1", 1, 32, "E8M0"), (200, 128)
    ),
    "MXFP4 of compressed-tensors": (
        compressed(4, "float", "group", group_size=32),
        [weight("U8", 200, 64, end=".weight_packed"), weight("U8", 200, 4, end=".weight_scale")],
        Scaled("e2m1", 1, 32, "E8M0"), (200, 128)
    ),
    "NVFP4 of compressed-tensors": (
        compressed(4, "float", "tensor_group", group_size=16),
        [weight("U8", 200, 64, end=".weight_packed"), weight("F8_E4M3", 200, 8, end=".weight_scale"),
         weight("F32", 1, end=".weight_global_scale"), weight("F32", 1, end=".input_global_scale")],
        Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides"), (200, 128)
    ),
    "NVFP4 of ModelOpt": (
        None,
        [weight("U8", 200, 64), weight("F8_E4M3", 200, 8, end=".weight_scale"), weight("F32", end=".weight_scale_2"),
         weight("F32", end=".input_scale")],
        Scaled("e2m1", 1, 16, "F8_E4M3", whole="multiplies"), (200, 128)
    ),
    "NVFP4 of one level": (
        None, [weight("U8", 200, 64), weight("F8_E4M3", 200, 8, end=".weight_scale")], Scaled("e2m1", 1, 16, "F8_E4M3"), (200, 128)
    ),
    "int4 of compressed-tensors": (
        INT4,
        [weight("I32", 200, 16, end=".weight_packed"), weight("BF16", 200, 4, end=".weight_scale"), weight("I32", 2, end=".weight_shape")],
        Scaled("int4", 1, 32, "BF16"), (200, 128)
    ),
    "int4 with a scale a row": (
        compressed(4, "int", "channel"), [weight("I32", 200, 16, end=".weight_packed"), weight("F16", 200, 1, end=".weight_scale")],
        Scaled("int4", 1, 0, "F16"), (200, 128)
    ),
}  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_matrix_is_one_tensor_of_plain_dtype_and_logical_shape_in_the_place_of_its_codes(tmp_path, scheme):
    config, parts, encoding, shape = SCHEMES[scheme]
    stored = open_checkpoint(str(sparse_model(tmp_path / "m", tensors(*parts), {"quantization_config": config})), StorageConfig()).tensors
    model = opened(tmp_path / "logical", parts, config)
    fused = {".gate_up_proj": "m.a.gate_up_proj", ".down_proj_blocks": "m.a.down_proj", ".up": "m.a.up"}
    name = fused.get(parts[0][0].removeprefix("m.a"), "m.a.weight")
    assert [*model.tensors] == ["m.norm.weight", name, "m.last.weight"]
    found = model.tensors[name]
    assert (found.dtype, found.shape) == ("BF16", shape)
    assert found.encoded.encoding == encoding
    assert [array.name for array in found.encoded.arrays] == [part[0] for part in parts]
    moved = stored[parts[0][0]].start - found.start  # the texts of the configs differ, and so do the headers of no file
    assert [array.tensor for array in found.encoded.arrays] == [stored[part[0]] for part in parts]
    assert moved == 0
    assert (found.file, found.stop) == (stored[parts[0][0]].file, stored[parts[0][0]].stop)
    assert found.nbytes == sum(stored[part[0]].stop - stored[part[0]].start for part in parts)
    assert find_quantised(model.tensors, model.config) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_arrays_have_exactly_the_bytes_that_the_encoding_reads(tmp_path, scheme):
    config, parts, encoding, shape = SCHEMES[scheme]
    (found,) = [tensor for tensor in opened(tmp_path / "m", parts, config).tensors.values() if tensor.encoded]
    elements = found.parameters
    ranges = encoding.ranges(shape, 0, elements)
    assert len(ranges) == encoding.arrays
    sizes = [array.tensor.stop - array.tensor.start for array in found.encoded.arrays]
    assert ranges == tuple((0, size) for size in sizes[: encoding.arrays])


STORED = {
    "AWQ": ({}, [weight("I32", 128, 25, end=".qweight"), weight("F16", 1, 200, end=".scales"), weight("I32", 1, 25, end=".qzeros")]),
    "GPTQ": ({}, [weight("I32", 16, 200, end=".qweight"), weight("F16", 1, 200, end=".scales"), weight("I32", 128, end=".g_idx")]),
    "zero points": (INT4, [weight("I32", 200, 16, end=".weight_packed"), weight("BF16", 200, 4, end=".weight_scale"),
                           weight("I32", 25, 4, end=".weight_zero_point")]),
    "zero points of fp8": (BLOCKS, [weight("F8_E4M3", 8, 8), weight("F32", 1, end=".weight_scale"),
                                    weight("F8_E4M3", 1, end=".weight_zero_point")]),
    "asymmetric": (compressed(4, "int", "group", group_size=32, symmetric=False),
                   [weight("I32", 200, 16, end=".weight_packed"), weight("BF16", 200, 4, end=".weight_scale")]),
    "act-order": (INT4, [weight("I32", 200, 16, end=".weight_packed"), weight("BF16", 200, 4, end=".weight_scale"),
                         weight("I32", 128, end=".weight_g_idx")]),
    "packed integers of 8 bits": (compressed(8, "int", "group", group_size=32),
                                  [weight("I32", 200, 32, end=".weight_packed"), weight("BF16", 200, 4, end=".weight_scale")]),
    "packed integers of no said size": ({}, [weight("I32", 200, 16, end=".weight_packed"), weight("BF16", 200, 4, end=".weight_scale")]),
    "int8": (compressed(8, "int", "channel"), [weight("I8", 200, 128), weight("BF16", 200, 1, end=".weight_scale")]),
    "pre_quant_scale": ({}, [weight("U8", 200, 64), weight("F8_E4M3", 200, 8, end=".weight_scale"),
                             weight("F32", end=".weight_scale_2"), weight("BF16", 128, end=".pre_quant_scale")]),
    "swizzled scales": ({}, [weight("U8", 200, 64), weight("F8_E4M3", 256, 8, end=".weight_scale"), weight("F32", end=".weight_scale_2")]),
    "rotated": (BLOCKS | {"transform_config": {"config_groups": {"u": {"type": "hadamard"}}}},
                [weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale")]),
    "experts of FBGEMM": ({"quant_method": "fbgemm_fp8"}, [weight("F8_E4M3", 2, 64, 32, end=".gate_up_proj"),
                                                            weight("F32", 2, 1, 32, end=".gate_up_proj_scale")]),
    "codes without a scale": (BLOCKS, [weight("F8_E4M3", 256, 128)]),
    "a scale without codes": (BLOCKS, [weight("F32", 2, 1, end=".weight_scale_inv")]),
    "codes twice": (INT4, [weight("BF16", 200, 128), weight("I32", 200, 16, end=".weight_packed"),
                           weight("BF16", 200, 4, end=".weight_scale")]),
    "two scales": (BLOCKS, [weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv"),
                            weight("F32", 1, end=".weight_scale")]),
    "another float of 8 bits": (BLOCKS, [weight("F8_E5M2", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv")]),
    "a ternary model": ({"quant_method": "bitnet"}, [weight("U8", 64, 64), weight("BF16", 1, end=".weight_scale")]),
    "bitsandbytes": ({}, [weight("U8", 4096, 1), weight("U8", 128, end=".weight.absmax"), weight("F32", 16, end=".weight.quant_map")]),
}  # fmt: skip


@pytest.mark.parametrize("scheme", STORED)
def test_what_cannot_be_decoded_stays_as_it_is_stored_and_is_found_as_quantised(tmp_path, scheme):
    config, parts = STORED[scheme]
    model = opened(tmp_path / "m", parts, config)
    assert [*model.tensors] == [part[0] for part in tensors(*parts)]
    assert all(tensor.encoded is None for tensor in model.tensors.values())
    assert {parts[0][0]} <= {name for found in find_quantised(model.tensors, model.config) for name in found.tensors}


@pytest.mark.parametrize(
    ("config", "codes", "scales", "said"),
    [
        (BLOCKS, weight("F8_E4M3", 576, 200), weight("F32", 4, 2, end=".weight_scale_inv"), "blocks of 128 × 128 have [5, 2]"),
        ({}, weight("F8_E4M3", 576, 200), weight("F32", 5, 2, end=".weight_scale_inv"), "weight_block_size"),
        (BLOCKS, weight("F8_E4M3", 4, 200, 130, end=".up"), weight("F32", 3, 2, 2, end=".up_scale_inv"), "[4, 2, 2]"),
        (INT4, weight("I32", 200, 16, end=".weight_packed"), weight("BF16", 200, 5, end=".weight_scale"), "blocks of 1 × 32 have [200, 4]"),
        ({}, weight("U8", 4, 200, 3, 16, end=".d_blocks"), weight("U8", 4, 100, 3, end=".d_scales"), "[4, 200, 3]"),
        (
            {"config_groups": {str(size): {"weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [size, 128]}}
                               for size in (128, 100)}},
            weight("F8_E4M3", 192, 128), weight("F32", 2, 1, end=".weight_scale"), "both have",
        ),
    ],
)  # fmt: skip
def test_scales_that_do_not_fit_their_codes_are_an_error_with_names_and_shapes(tmp_path, config, codes, scales, said):
    with pytest.raises(CheckpointError) as caught:
        opened(tmp_path / "m", [codes, scales], config)
    for part in (repr(codes[0]), repr(scales[0]), str(list(codes[2])), str(list(scales[2])), said, "quantization_config"):
        assert part in str(caught.value)


def test_all_that_do_not_fit_are_counted_and_some_are_named(tmp_path):
    parts = [part for n in range(9) for part in ((f"m.{n}.weight", "F8_E4M3", (8, 8)), (f"m.{n}.weight_scale_inv", "F32", (2, 2)))]
    with pytest.raises(CheckpointError, match=r"'m\.0\.weight'.*'m\.2\.weight'.*and 6 more"):
        opened(tmp_path / "m", parts, BLOCKS)


def test_of_several_blocks_that_a_config_names_those_count_that_fit(tmp_path):
    groups = {
        "a": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}},
        "b": {"weights": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]}},
        "c": {"weights": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}},
    }
    parts = [
        ("m.a.weight", "F8_E4M3", (256, 256)), ("m.a.weight_scale", "F32", (256, 1)),
        ("m.b.weight", "F8_E4M3", (256, 256)), ("m.b.weight_scale", "F32", (2, 2)),
        ("m.c.weight_packed", "U8", (256, 128)), ("m.c.weight_scale", "F8_E4M3", (256, 16)), ("m.c.weight_global_scale", "F32", (1,)),
    ]  # fmt: skip
    found = opened(tmp_path / "m", parts, {"config_groups": groups}).tensors
    assert [(tensor.encoded.encoding.rows, tensor.encoded.encoding.columns) for tensor in found.values() if tensor.encoded] == [
        (1, 0), (128, 128), (1, 16)
    ]  # fmt: skip


def test_layers_of_one_model_may_be_quantised_in_different_ways(tmp_path):
    parts = [
        ("m.0.a.weight_packed", "U8", (256, 128)), ("m.0.a.weight_scale", "F8_E4M3", (256, 16)), ("m.0.a.weight_global_scale", "F32", (1,)),
        ("m.1.a.weight", "F8_E4M3", (256, 256)), ("m.1.a.weight_scale", "F32", (256, 1)),
        ("m.2.a.weight", "F8_E4M3", (256, 256)), ("m.2.a.weight_scale_inv", "F32", (2, 2)),
        ("m.3.a.weight", "U8", (256, 128)), ("m.3.a.weight_scale", "F8_E4M3", (256, 16)), ("m.3.a.weight_scale_2", "F32", ()),
        ("m.4.a.weight", "BF16", (256, 256)),
    ]  # fmt: skip
    found = opened(tmp_path / "m", parts, BLOCKS).tensors
    assert {name: tensor.encoded and tensor.encoded.encoding for name, tensor in found.items() if ".a." in name} == {
        "m.0.a.weight": Scaled("e2m1", 1, 16, "F8_E4M3", whole="divides"),
        "m.1.a.weight": Scaled("e4m3", 1, 0, "F32"),
        "m.2.a.weight": Scaled("e4m3", 128, 128, "F32"),
        "m.3.a.weight": Scaled("e2m1", 1, 16, "F8_E4M3", whole="multiplies"),
        "m.4.a.weight": None,
    }


def test_siblings_decide_whatever_a_list_in_the_config_says(tmp_path):
    parts = [
        ("m.0.a.weight", "F8_E4M3", (256, 128)), ("m.0.a.weight_scale_inv", "F32", (2, 1)), ("m.1.a.weight", "BF16", (256, 128)),
    ]  # fmt: skip
    found = opened(tmp_path / "m", parts, BLOCKS | {"modules_to_not_convert": ["m.0.a"], "ignore": ["m.0.a"]}).tensors
    assert {name: tensor.encoded is not None for name, tensor in found.items() if ".a." in name} == {
        "m.0.a.weight": True, "m.1.a.weight": False
    }  # fmt: skip


def test_a_scale_may_lie_in_another_file_and_before_its_codes(tmp_path):
    parts = [("m.0.weight_scale_inv", "F32", (8, 1)), ("m.big.weight", "BF16", (256, 256)), ("m.0.weight", "F8_E4M3", (1024, 128))]
    folder = sparse_model(tmp_path / "m", parts, {"quantization_config": BLOCKS}, files=2)
    model = with_logical_tensors(open_checkpoint(str(folder), StorageConfig()))
    found = model.tensors["m.0.weight"]
    assert found.file != found.encoded.arrays[1].tensor.file
    assert [*model.tensors] == ["m.big.weight", "m.0.weight"]


def test_scales_of_the_cache_go_with_the_matrix_that_makes_it_and_stay_where_that_is_plain(tmp_path):
    def layer(number, dtype):
        name = f"m.{number}.self_attn"
        yield f"{name}.k_proj.weight", dtype, (64, 64)
        yield from [(f"{name}.k_proj.weight_scale", "F32", ())] * (dtype == "F8_E4M3")
        yield from ((f"{name}.{end}", "F32", ()) for end in ("k_proj.k_scale", "k_scale"))

    found = opened(tmp_path / "m", [*layer(0, "F8_E4M3"), *layer(1, "BF16")], {"quant_method": "modelopt"}).tensors
    assert [array.name for array in found["m.0.self_attn.k_proj.weight"].encoded.arrays] == [
        f"m.0.self_attn.{end}" for end in ("k_proj.weight", "k_proj.weight_scale", "k_proj.k_scale", "k_scale")
    ]
    assert [name for name in found if name.endswith("k_scale")] == ["m.1.self_attn.k_proj.k_scale", "m.1.self_attn.k_scale"]


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"torch_dtype": "float16"}, "F16"), ({"dtype": "float32", "torch_dtype": "float16"}, "F32"), ({"dtype": "float8_e4m3fn"}, "BF16"),
        ({"text_config": {"dtype": "float16"}}, "F16"), ({"dtype": "torch.float16"}, "F16"), ({}, "BF16"), ({"dtype": 3}, "BF16"),
    ],
)  # fmt: skip
def test_plain_numbers_have_the_dtype_that_the_config_says(tmp_path, fields, dtype):
    parts = [weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv")]
    assert opened(tmp_path / "m", parts, BLOCKS, **fields).tensors["m.a.weight"].dtype == dtype


def test_a_description_inside_the_text_config_counts(tmp_path):
    parts = [weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv")]
    found = opened(tmp_path / "m", parts, text_config={"compression_config": BLOCKS}).tensors["m.a.weight"]
    assert found.encoded.encoding == Scaled("e4m3", 128, 128, "F32")


@pytest.mark.parametrize("block", [[128], "x", [0, 128], [True, 128], [128, 1 << 70], {"a": 1}, 128, [[128], 128]])
def test_a_block_size_that_is_none_counts_as_not_there(tmp_path, block):
    with pytest.raises(CheckpointError, match="weight_block_size"):
        opened(tmp_path / "m", [weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv")], {"weight_block_size": block})


def plain(path, more=()):
    return sparse_model(path, tensors(("m.a.weight", "BF16", (8, 8)), *more), {"model_type": "toy"})


@pytest.mark.parametrize("more", [(), [("m.steps", "I32", (3,)), ("m.q_norm.scale", "BF16", (8,)), ("m.mask", "U8", (4,))]])
def test_a_plain_checkpoint_comes_back_as_the_very_same_object(tmp_path, more):
    checkpoint = open_checkpoint(str(plain(tmp_path / "m", more)), StorageConfig())
    assert with_logical_tensors(checkpoint) is checkpoint


def test_models_that_share_their_tensors_share_the_logical_ones(tmp_path):
    parts = tensors(weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv"))
    urls = [str(sparse_model(tmp_path / name, parts, {"quantization_config": BLOCKS, "name": name})) for name in ("a", "b")]
    other = str(sparse_model(tmp_path / "c", parts, {"quantization_config": BLOCKS, "dtype": "float16"}))
    found = with_logical(open_checkpoints([*urls, other], StorageConfig()))
    assert found[urls[0]].tensors is found[urls[1]].tensors
    assert found[other].tensors["m.a.weight"].dtype == "F16"


def test_there_must_be_room_for_what_is_known_of_each_matrix(tmp_path):
    parts = [part for n in range(99) for part in ((f"m.{n}.weight", "F8_E4M3", (8, 8)), (f"m.{n}.weight_scale_inv", "F32", (1, 1)))]
    checkpoint = open_checkpoint(str(sparse_model(tmp_path / "m", parts, {"quantization_config": BLOCKS})), StorageConfig())
    with pytest.raises(OverBudget, match="quantised"):
        with_logical({"m": checkpoint}, Room(1 << 20))


def test_a_quantised_model_fits_a_plain_one_of_the_same_shapes_and_its_config_is_not_left_over(tmp_path):
    parts = tensors(weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv"))
    base = sparse_model(tmp_path / "base", parts, {"model_type": "toy", "quantization_config": BLOCKS})
    post = sparse_model(tmp_path / "post", tensors(weight("BF16", 256, 128)), {"model_type": "toy"})
    found = with_logical(open_checkpoints([str(base), str(post)], StorageConfig()))
    for one, other in ((base, post), (post, base)):
        report = compare(found[str(one)], [found[str(other)]], StorageConfig())
        assert report.mismatches == ()
        assert not any("quantisation" in note for note in report.notes)


def test_a_claim_that_decoded_tensors_bear_out_is_not_held_against_integers_beside_them(tmp_path):
    parts = [weight("F8_E4M3", 256, 128), weight("F32", 2, 1, end=".weight_scale_inv"), ("m.steps.table", "I32", (8,))]
    model = opened(tmp_path / "m", parts, BLOCKS)
    assert find_quantised(model.tensors, model.config) == []
