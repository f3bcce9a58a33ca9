"""Names in transformers' MobileViT models: classifier, segmenter, and the one without a head."""

from mobilevit_coreml.checkpoints.naming import Naming

HUGGING_FACE = Naming(
    name="Hugging Face",
    marker="conv_stem.convolution.weight",
    optional_prefix="mobilevit.",  # a bare MobileViTModel has none
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
