"""Checkpoints of Apple's ml-cvnets: names of tensors, config.yaml."""

from mobilevit_coreml.checkpoints.naming import Naming
from mobilevit_coreml.model.backbone import DEPTHS

# Apple's ml-cvnets v0.1, the code of the paper
CVNETS = Naming(
    name="cvnets",
    marker="layer_1.0.block.exp_1x1.block.conv.weight",
    optional_prefix="encoder.",  # of the backbone in segmenters
    heads=("classifier.", "seg_head."),
    last_layers=("classifier", "seg_head.classifier"),
    unused=("seg_head.aux_head.",),  # for training only
    aliases=((r"^seg_head\.classifier\.classifier\.", "seg_head.classifier."),),  # both in v0.1
    channel_order="BGR",
    renames=(
        (r"^head\.branches\.(\d)\.", r"seg_head.aspp.aspp_layer.convs.\1.block."),
        (r"^head\.pool\.", "seg_head.aspp.aspp_layer.convs.4.aspp_pool.conv_1x1.block."),
        (r"^head\.project\.", "seg_head.aspp.aspp_layer.project.block."),
        (r"^head\.classifier\.", "seg_head.classifier.block.conv."),
        (r"^backbone\.stem\.", "conv_1.block."),
        (r"^backbone\.expand\.", "conv_1x1_exp.block."),
        (r"^backbone\.stage", "layer_"),
        (r"\.expand\.", ".block.exp_1x1.block."),
        (r"\.depthwise\.", ".block.conv_3x3.block."),
        (r"\.reduce\.", ".block.red_1x1.block."),
        (r"\.local\.", ".local_rep.conv_3x3.block."),
        (r"\.project_in\.", ".local_rep.conv_1x1.block.conv."),
        (r"\.layers\.", ".global_rep."),
        (r"\.attention_norm\.", ".pre_norm_mha.0."),
        (r"\.attention\.qkv\.", ".pre_norm_mha.1.qkv_proj."),
        (r"\.attention\.out\.", ".pre_norm_mha.1.out_proj."),
        (r"\.mlp_norm\.", ".pre_norm_ffn.0."),
        (r"\.mlp_in\.", ".pre_norm_ffn.1."),
        (r"\.mlp_out\.", ".pre_norm_ffn.4."),
        # the norm after the transformer is the last entry of global_rep
        *((rf"^layer_{stage}\.1\.layer_norm\.", f"layer_{stage}.1.global_rep.{n}.") for stage, n in DEPTHS.items()),
        (r"\.project_out\.", ".conv_proj.block."),
        (r"\.fusion\.", ".fusion.block."),
        (r"\.batch_norm\.", ".norm."),
        (r"^classifier\.", "classifier.fc."),
    ),
)
