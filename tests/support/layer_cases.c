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
    {NULL, NULL},
};
