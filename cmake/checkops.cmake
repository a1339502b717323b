# fovea-checkops: primitives against the reference backend, and timed.  For people who change kernels: it reaches below
# the public interface, and is not installed.
file(GLOB checkops_sources CONFIGURE_DEPENDS bench/checkops/*.c)
add_executable(fovea-checkops ${checkops_sources} src/app/json.c src/app/measure.c src/app/noise.c src/app/peaks.c
               src/app/table.c)
target_link_libraries(fovea-checkops PRIVATE fovea_static)

# fovea-activations: KL of each choice of activations from f32, with the library's products replaced; not installed either.
add_executable(fovea-activations bench/activations/main.c src/app/json.c src/app/scores.c)
target_link_libraries(fovea-activations PRIVATE fovea_static)

# fovea-plans: plans and terms of attention beside dense attention.
add_executable(fovea-plans bench/plans/main.c src/app/json.c src/app/measure.c src/app/noise.c src/app/peaks.c src/app/table.c)
target_link_libraries(fovea-plans PRIVATE fovea_static)

# fovea-storage: what keeping rows of keys and values costs.
add_executable(fovea-storage bench/storage/main.c src/app/json.c src/app/measure.c src/app/noise.c src/app/peaks.c src/app/table.c)
target_link_libraries(fovea-storage PRIVATE fovea_static)
