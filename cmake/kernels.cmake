# Templates of kernels (src/ops/cpu/*_tmpl.c) are compiled once per instruction set; which one runs is chosen at run
# time.  A new instruction set is a folder with its vector.h, a line here, and one in src/ops/cpu/backend.c.
file(GLOB kernel_templates CONFIGURE_DEPENDS src/ops/cpu/*_tmpl.c)

if(FOVEA_SANITIZE OR FOVEA_FUZZ)
    # Unrolled vector code with two checks at every access takes minutes to optimise: the address sanitizer looks at
    # each, the other one only at arithmetic.  Most of a model's time is the micro-kernel's: three times as fast with its
    # sums in registers.  These are options of the sources, since those stand behind -fsanitize.
    set(fewer_checks -fno-sanitize=null,alignment,object-size,pointer-overflow,bounds)
    set_source_files_properties(${kernel_templates} PROPERTIES COMPILE_OPTIONS "-O1;${fewer_checks}")
    set_source_files_properties(${PROJECT_SOURCE_DIR}/src/ops/cpu/tile_tmpl.c PROPERTIES COMPILE_OPTIONS "-O2;${fewer_checks}")
endif()

function(fovea_kernels isa folder)
    add_library(fovea_kernels_${isa} OBJECT ${kernel_templates})
    target_link_libraries(fovea_kernels_${isa} PRIVATE fovea_options)
    target_compile_definitions(fovea_kernels_${isa} PRIVATE FV_ISA=${isa} FV_VECTOR="ops/cpu/${folder}/vector.h")
    target_compile_options(fovea_kernels_${isa} PRIVATE ${ARGN})
    set_property(GLOBAL APPEND PROPERTY FOVEA_KERNEL_OBJECTS $<TARGET_OBJECTS:fovea_kernels_${isa}>)
endfunction()

fovea_kernels(c c)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    set(avx2 -mavx2 -mfma -mf16c)
    set(avx512f ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
    fovea_kernels(avx2 avx2 ${avx2})
    fovea_kernels(avx512f avx512 ${avx512f})
    fovea_kernels(avx512 avx512 ${avx512f} -mavx512bf16 -mavx512vnni)
endif()
get_property(kernel_objects GLOBAL PROPERTY FOVEA_KERNEL_OBJECTS)
