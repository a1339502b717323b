#include "support/layer_trial.h"

#define HCAM_MATRICES(e)                                                                                               \
    "summary_q_weight=" e " summary_k_weight=" e " q_weight=" e " k_weight=" e " v_weight=" e " out_weight=" e
#define HCAM_BIASES(e) " q_bias=" e " k_bias=" e " v_bias=" e " out_bias=" e
#define TAB_MATRICES(c, k, cq, f)                                                                                      \
    "centres=" k "x" c " q_weight=" cq "x" c " k_weight=" cq "x" c " v_weight=" c "x" c " centre_k_weight=" cq "x" c   \
    " centre_v_weight=" c "x" c " proj_weight=" c "x" c " conv_weight=" c "x" c " ffn.fc1_weight=" f "x" c             \
    " ffn.dw_weight=" f "x5x5 ffn.fc2_weight=" c "x" f
#define TAB_VECTORS(c, f)                                                                                              \
    " norm_weight=" c " norm_bias=" c " ffn.norm_weight=" c " ffn.norm_bias=" c " ffn.fc1_bias=" f " ffn.dw_bias=" f   \
    " ffn.fc2_bias=" c
#define FIT_MATRICES(e, own, other)                                                                                    \
    "q_weight=" e "x" own " k_weight=" e "x" other " v_weight=" e "x" other " o_weight=" own "x" e
#define FIT_NORMS(own, other) " q_norm_weight=" own " q_norm_bias=" own " kv_norm_weight=" other " kv_norm_bias=" other
#define FIT_BIASES(e, own) " q_bias=" e " k_bias=" e " v_bias=" e " o_bias=" own
#define STM_MATRICES(c, wide)                                                                                          \
    "score_weight=1x" c " q_weight=" c "x" c " k_weight=" c "x" c " v_weight=" c "x" c " o_weight=" c "x" c            \
    " mlp1_weight=" wide "x" c " mlp2_weight=" c "x" wide
#define STM_VECTORS(c, wide)                                                                                           \
    " norm1_weight=" c " norm1_bias=" c " score_bias=1 q_bias=" c " k_bias=" c " v_bias=" c " o_bias=" c               \
    " norm2_weight=" c " norm2_bias=" c " mlp1_bias=" wide " mlp2_bias=" c
#define OVERRIDE_INPUTS(b, n, text, c) "w=" b "x" n "x" c " f=" b "x" n "x" c " c=" b "x" text "x" c
#define OVERRIDE_MATRICES(c)                                                                                           \
    " self_q=" c "x" c " self_k=" c "x" c " self_v=" c "x" c " self_o=" c "x" c " cross_q=" c "x" c " cross_k=" c      \
    "x" c " cross_v=" c "x" c " cross_o=" c "x" c
#define OVERRIDE_PARAMS(c)                                                                                             \
    OVERRIDE_MATRICES(c)                                                                                               \
    " self_q_bias=" c " self_k_bias=" c " self_v_bias=" c " self_o_bias=" c " cross_q_bias=" c " cross_k_bias=" c      \
    " cross_v_bias=" c " cross_o_bias=" c

#define SEPARATE_MATRICES(c) "q_weight=" c "x" c " k_weight=" c "x" c " v_weight=" c "x" c " o_weight=" c "x" c

const layer_case layer_cases[] = {
    {"hcam:chunk=3,top=2,heads=2", "x=2x5x8 keys=2x4x8 contents=2x4x3x8 " HCAM_MATRICES("8x8") HCAM_BIASES("8")},
    {"hcam:chunk=4,top=3,heads=1,position=0", "x=1x3x5 keys=1x3x5 contents=1x3x4x5 " HCAM_MATRICES("5x5")},
    {"hcam:chunk=2,top=2,heads=3", "x=2x1x6 keys=2x9x6 contents=2x9x2x6 mask=2x1x9<2 " HCAM_MATRICES("6x6")
                                       HCAM_BIASES("6")}, /* few of the chunks are chosen */
    {"hcam:chunk=2,top=1,heads=2", "x=2x2x4 keys=2x7x4 contents=2x7x2x4 " HCAM_MATRICES("4x4") " v_bias=4"},
    {"hcam:chunk=1,top=9,heads=2",
     "x=3x4x4 keys=3x2x4 contents=3x2x1x4 mask=3x4x2<2 " HCAM_MATRICES("4x4") HCAM_BIASES("4")},
    {"hcam:chunk=2,heads=2", "x=1x2x4 keys=1x3x4 contents=1x3x2x4 mask=1x2x3<1 " HCAM_MATRICES("4x4")
                                 HCAM_BIASES("4")}, /* nothing may be read */

    {"tab:heads=2,group=5,size=3x4", "x=2x12x8 " TAB_MATRICES("8", "3", "6", "7") TAB_VECTORS("8", "7")},
    {"tab:heads=1,group=4,size=7x1", "x=1x7x4 " TAB_MATRICES("4", "2", "5", "3") " ffn.norm_weight=4 ffn.dw_bias=3"},
    {"tab:size=2x3", "x=1x6x8 " TAB_MATRICES("8", "1", "4", "2")}, /* one group of all */

    {"mlpmix", "x=2x5x6 gate_weight=8x6 up_weight=8x6 down_weight=6x8"},
    {"mlpmix", "x=1x1x3 gate_weight=1x3 up_weight=1x3 down_weight=3x1"},
    {"mlpmix", "x=3x2x1 gate_weight=5x1 up_weight=5x1 down_weight=1x5"},

    {"fixedmap:heads=2", "x=3x7x8 s=9x8 " SEPARATE_MATRICES("8")},
    {"fixedmap:heads=3,causal=0,rope_base=100", "x=2x5x6 s=5x6 " SEPARATE_MATRICES("6")},
    {"fixedmap:heads=1,rope_base=10000", "x=40x4x8 s=70x8 " SEPARATE_MATRICES("8")}, /* batches in two parts */
    {"fixedmap:heads=1", "x=1x1x1 s=1x1 " SEPARATE_MATRICES("1")},
    {"staticqk:heads=2", "x=3x7x8 s=3x7x8 " SEPARATE_MATRICES("8")},
    {"staticqk:heads=3,causal=0,rope_base=100", "x=2x5x6 s=2x5x6 " SEPARATE_MATRICES("6")},
    {"staticqk:heads=1,rope_base=10000", "x=1x70x4 s=1x70x4 " SEPARATE_MATRICES("4")},
    {"staticqk:heads=5", "x=2x1x5 s=2x1x5 " SEPARATE_MATRICES("5")},

    {"na_qk:grid=9,window=3", "q=2x4x9x5 k=2x2x9x5 rpb=4x5"},
    {"na_qk:grid=11,window=4,dilation=2,scale=0.5", "q=1x2x11x6 k=1x1x11x6"},
    {"na_qk:grid=4x7,window=3x5,scale=-2", "q=1x3x28x4 k=1x1x28x4 rpb=3x5x9"},
    {"na_qk:grid=4x6,window=2x3,dilation=2x1,causal=1x0", "q=2x2x24x3 k=2x2x24x3"},
    {"na_qk:grid=2x5x3,window=1x3x3", "q=1x2x30x4 k=1x2x30x4 rpb=2x1x5x5"},
    {"na_qk:grid=3x4x5,window=0x2x3,causal=1", "q=1x2x60x3 k=1x2x60x3"},
    {"na_qk:grid=7,window=3,dilation=2,scale=0", "q=1x2x7x3 k=1x1x7x3 rpb=2x5"},
    {"na_qk:grid=70,window=0", "q=1x1x70x2 k=1x1x70x2"}, /* more slots than are taken together */
    {"na_qk:grid=1,window=1", "q=2x1x1x1 k=2x1x1x1 rpb=1x1"},
    {"na_av:grid=9,window=3", "a=2x4x9x3 v=2x2x9x5"},
    {"na_av:grid=11,window=4,dilation=2", "a=1x2x11x4 v=1x1x11x17"},
    {"na_av:grid=4x6,window=2x3,dilation=2x1,causal=1x0", "a=2x2x24x6 v=2x2x24x3"},
    {"na_av:grid=3x4x5,window=0x2x3,causal=1", "a=1x2x60x18 v=1x2x60x3"},
    {"na_av:grid=70,window=0", "a=1x1x70x70 v=1x1x70x2"},
    {"na_av:grid=1,window=1", "a=2x1x1x1 v=2x1x1x1"},

    {"lepe:grid=4x6", "x=2x24x5 weight=5x3x3 bias=5"},
    {"lepe:grid=4x6,window=2x3", "x=2x24x3 weight=3x3x3 bias=3"},
    {"lepe:grid=4x6,window=0x2", "x=1x24x4 weight=4x5x5"},
    {"lepe:grid=5x7,window=2x3", "x=2x35x3 weight=3x3x3 bias=3"}, /* a row of pads below, a column on both sides */
    {"lepe:grid=7x3,window=3x2", "x=1x21x2 weight=2x3x3"},
    {"lepe:grid=3x3,window=1", "x=1x9x2 weight=2x7x7 bias=2"},
    {"lepe:grid=1x1", "x=2x1x3 weight=3x1x1 bias=3"},

    {"fit_read:heads=2", "z=2x3x2x8 x=2x3x5x6 " FIT_MATRICES("6", "8", "6") FIT_NORMS("8", "6") FIT_BIASES("6", "8")},
    {"fit_read:heads=3", "z=1x2x4x5 x=1x2x3x7 " FIT_MATRICES("9", "5", "7") " q_norm_bias=5 v_bias=9"},
    {"fit_read:heads=1", "z=2x1x1x4 x=2x1x1x4 " FIT_MATRICES("4", "4", "4")},
    {"fit_write:heads=2", "x=2x3x5x6 z=2x3x2x8 " FIT_MATRICES("6", "6", "8") FIT_NORMS("6", "8") FIT_BIASES("6", "6")},
    {"fit_write:heads=2,shift=1",
     "x=2x3x4x6 z=2x3x2x8 " FIT_MATRICES("6", "6", "8") FIT_NORMS("6", "8") FIT_BIASES("6", "6")},
    {"fit_write:heads=1,shift=1", "x=1x1x3x4 z=1x1x2x5 " FIT_MATRICES("3", "4", "5") " kv_norm_bias=5"},

    {"logit_growth", "q=2x4x9x6 k=2x2x9x6"},
    {"logit_growth:causal=0", "q=1x3x7x5 k=1x3x7x5"},
    {"logit_growth:scale=2", "q=2x2x70x4 k=2x1x70x4"},
    {"logit_growth:causal=0,scale=0.01", "q=1x1x1x3 k=1x1x1x3"},

    {"attn_indicators", "a=3x6x6"},
    {"attn_indicators", "a=1x9x9"},
    {"attn_indicators", "a=4x2x2"}, /* too short for two of the distances */
    {"attn_indicators", "a=2x1x1"},

    {"attn_influence:block=3", "q=2x4x8x5 k=2x2x8x5 v=2x2x8x6 do=2x4x8x6"},
    {"attn_influence:block=1,absolute=0", "q=1x2x7x4 k=1x2x7x4 v=1x2x7x3 do=1x2x7x3"},
    {"attn_influence", "q=3x3x9x4 k=3x1x9x4 v=3x1x9x4 do=3x3x9x4"},
    {"attn_influence:block=64,absolute=0", "q=1x2x70x4 k=1x1x70x4 v=1x1x70x4 do=1x2x70x4"},
    {"attn_influence:block=2", "q=1x1x1x2 k=1x1x1x2 v=1x1x1x2 do=1x1x1x2"},

    {"stm_dpc:tokens=4,k=3,heads=2,noise=0", "x=2x11x8 " STM_MATRICES("8", "32") STM_VECTORS("8", "32")},
    {"stm_dpc:tokens=5,heads=1,noise=0", "x=1x9x4 " STM_MATRICES("4", "16") " score_bias=1 v_bias=4 norm1_weight=4"},
    {"stm_dpc:tokens=6,k=2,heads=3,noise=0", "x=1x6x6 " STM_MATRICES("6", "24")}, /* clusters of one */
    {"stm_dpc:tokens=1,k=4,heads=2,noise=0", "x=2x7x4 " STM_MATRICES("4", "16") STM_VECTORS("4", "16")},
    {"stm_dpc:tokens=1,k=1,heads=1,noise=0", "x=1x1x4 " STM_MATRICES("4", "16")},

    {"tile_search:frames=4,family=3+2+1,threshold=0.01", "q=3x2x12x5 k=3x1x12x5 v=3x1x12x6"},
    {"tile_search:frames=6,family=1+2+6,threshold=0.02,text=3", "q=4x2x15x4 k=4x2x15x4 v=4x2x15x3"},
    {"tile_search:frames=5,family=2,threshold=0.03,text=1,block=4", "q=2x3x26x4 k=2x1x26x4 v=2x1x26x4"},
    {"tile_search:frames=3,family=1+1+2,threshold=0", "q=2x1x6x3 k=2x1x6x3 v=2x1x6x2"},
    {"tile_search:frames=1,family=1,threshold=5", "q=1x1x1x1 k=1x1x1x1 v=1x1x1x1"},

    {"cross_override:grid=2x5x4,native=3x2,heads=2", OVERRIDE_INPUTS("2", "40", "3", "6") OVERRIDE_PARAMS("6")},
    {"cross_override:grid=1x6x7,native=4x3,heads=1,inward=0",
     OVERRIDE_INPUTS("1", "42", "2", "4") OVERRIDE_MATRICES("4")},
    {"cross_override:grid=2x4x3,native=2x9,heads=3,override=0",
     OVERRIDE_INPUTS("2", "24", "1", "6") OVERRIDE_PARAMS("6")},
    {"cross_override:grid=2x3x5,native=3x3,heads=2,inward=0,temp_fix=0",
     OVERRIDE_INPUTS("1", "30", "5", "4") OVERRIDE_PARAMS("4")},
    {"cross_override:grid=1x1x1,native=1x1,heads=1,temp_fix=0,override=0",
     OVERRIDE_INPUTS("2", "1", "1", "3") OVERRIDE_MATRICES("3")},
    {NULL, NULL},
};
