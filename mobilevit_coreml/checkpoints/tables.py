"""Parameter names in checkpoints of other code bases, a table for each."""

from mobilevit_coreml.checkpoints.naming import Naming
from mobilevit_coreml.model.backbone import DEPTHS

# models of this package, saved after training
OWN = Naming(
    name="mobilevit_coreml",
    marker="backbone.stem.conv.weight",
    heads=("classifier.", "head."),
    channel_order="BGR",
    renames=(),
)

# transformers: MobileViTForImageClassification, MobileViTForSemanticSegmentation, MobileViTModel
HUGGING_FACE = Naming(
    name="Hugging Face",
    marker="conv_stem.convolution.weight",
    optional_prefix="mobilevit.",  # not in MobileViTModel
    heads=("classifier.", "segmentation_head."),
    channel_order="BGR",
    renames=(
        (r"^head\.branches\.", "segmentation_head.aspp.convs."),
        (r"^head\.pool\.", "segmentation_head.aspp.convs.4.conv_1x1."),
        (r"^head\.project\.", "segmentation_head.aspp.project."),
        (r"^head\.classifier\.", "segmentation_head.classifier.convolution."),
        (r"^backbone\.stem\.", "conv_stem."),
        *((rf"^backbone\.stage{stage}\.", f"encoder.layer.{stage - 1}.") for stage in range(1, 6)),
        (r"^encoder\.layer\.([01])\.", r"encoder.layer.\1.layer."),
        (r"^encoder\.layer\.([234])\.0\.", r"encoder.layer.\1.downsampling_layer."),
        (r"^encoder\.layer\.([234])\.1\.", r"encoder.layer.\1."),
        (r"^backbone\.expand\.", "conv_1x1_exp."),
        (r"\.expand\.", ".expand_1x1."),
        (r"\.depthwise\.", ".conv_3x3."),
        (r"\.reduce\.", ".reduce_1x1."),
        (r"\.local\.", ".conv_kxk."),
        (r"\.project_in\.", ".conv_1x1.convolution."),
        (r"\.layers\.", ".transformer.layer."),
        (r"\.attention_norm\.", ".layernorm_before."),
        (r"\.attention\.qkv\.", ".attention.attention.{query,key,value}."),
        (r"\.attention\.out\.", ".attention.output.dense."),
        (r"\.mlp_norm\.", ".layernorm_after."),
        (r"\.mlp_in\.", ".intermediate.dense."),
        (r"\.mlp_out\.", ".output.dense."),
        (r"\.layer_norm\.", ".layernorm."),
        (r"\.project_out\.", ".conv_projection."),
        (r"\.conv\.", ".convolution."),
        (r"\.batch_norm\.", ".normalization."),
    ),
)

# Apple's ml-cvnets v0.1, the code of the paper
CVNETS = Naming(
    name="cvnets",
    marker="conv_1.block.conv.weight",
    optional_prefix="encoder.",  # of the backbone in segmenters
    heads=("classifier.", "seg_head."),
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

# timm's mobilevit_xxs, mobilevit_xs and mobilevit_s
TIMM = Naming(
    name="timm",
    marker="stem.conv.weight",
    heads=("head.",),
    channel_order="RGB",  # timm flipped the input channels of Apple's stem weights
    renames=(
        (r"^backbone\.stem\.", "stem."),
        (r"^backbone\.expand\.", "final_conv."),
        *((rf"^backbone\.stage{stage}\.", f"stages.{stage - 1}.") for stage in range(1, 6)),
        (r"\.expand\.", ".conv1_1x1."),
        (r"\.depthwise\.", ".conv2_kxk."),
        (r"\.reduce\.", ".conv3_1x1."),
        (r"\.local\.", ".conv_kxk."),
        (r"\.project_in\.", ".conv_1x1."),
        (r"\.layers\.", ".transformer."),
        (r"\.attention_norm\.", ".norm1."),
        (r"\.attention\.qkv\.", ".attn.qkv."),
        (r"\.attention\.out\.", ".attn.proj."),
        (r"\.mlp_norm\.", ".norm2."),
        (r"\.mlp_in\.", ".mlp.fc1."),
        (r"\.mlp_out\.", ".mlp.fc2."),
        (r"\.layer_norm\.", ".norm."),
        (r"\.project_out\.", ".conv_proj."),
        (r"\.fusion\.", ".conv_fusion."),
        (r"\.batch_norm\.", ".bn."),
        (r"^classifier\.", "head.fc."),
    ),
)

NAMINGS = (OWN, HUGGING_FACE, CVNETS, TIMM)
