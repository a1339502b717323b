# libFuzzer programs, one per tests/fuzz/fuzz_*.c; run one as
#   build-fuzz/fuzz_gguf -max_total_time=600 -rss_limit_mb=2048 CORPUS tests/fuzz/seeds/gguf
if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "FOVEA_FUZZ needs clang: CC=clang cmake --preset fuzz")
endif()
if(NOT TARGET fovea_test_support)
    message(FATAL_ERROR "FOVEA_FUZZ needs FOVEA_TESTS=ON")
endif()
file(GLOB fuzz_sources CONFIGURE_DEPENDS tests/fuzz/fuzz_*.c)
foreach(source ${fuzz_sources})
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE fovea_test_support)
    target_compile_definitions(${name} PRIVATE FOVEA_FUZZ_TARGET)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer -Wl,--wrap=aligned_alloc,--wrap=realloc)
endforeach()
target_sources(fuzz_request PRIVATE src/app/serve_request.c src/app/serve_head.c) # of the command, not the library
