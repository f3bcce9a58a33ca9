"""Names in timm's `mobilevit_xxs`, `mobilevit_xs` and `mobilevit_s`."""

from mobilevit_coreml.checkpoints.naming import Naming

TIMM = Naming(
    name="timm",
    marker="stem.conv.weight",
    heads=("head.",),
    channel_order="RGB",  # timm turned the stem of Apple's weights around
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
