# One cmocka program per tests/FLOOR/test_*.c; what it shares lies in tests/support and tests/sheets.
pkg_check_modules(CMOCKA REQUIRED IMPORTED_TARGET cmocka)

file(GLOB support_sources CONFIGURE_DEPENDS tests/support/*.c tests/sheets/*.c tests/policies/*.c)
add_library(fovea_test_support OBJECT ${support_sources})
target_link_libraries(fovea_test_support PUBLIC fovea_static PkgConfig::CMOCKA)
target_include_directories(fovea_test_support PUBLIC ${PROJECT_SOURCE_DIR}/tests)
target_compile_definitions(fovea_test_support PUBLIC FOVEA_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
                           FOVEA_BINARY_DIR="${PROJECT_BINARY_DIR}")

# Labels: a test's floor, and every_isa where it runs through the instruction sets itself.  `ctest -L ops -LE every_isa`
# with FOVEA_ISA set is what a change of kernels has to pass on each of the others.
file(GLOB test_sources CONFIGURE_DEPENDS tests/*/test_*.c)
foreach(source ${test_sources})
    get_filename_component(name ${source} NAME_WE)
    get_filename_component(labels ${source} DIRECTORY)
    get_filename_component(labels ${labels} NAME)
    file(STRINGS ${source} walks_isas REGEX "test_isas|test_each_isa")
    if(walks_isas)
        list(APPEND labels every_isa)
    endif()
    add_executable(${name} ${source})
    target_link_libraries(${name} PRIVATE fovea_test_support)
    # Tests replace the allocator to make it fail on demand.
    target_link_options(${name} PRIVATE -Wl,--wrap=aligned_alloc,--wrap=realloc)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES TIMEOUT 900 LABELS "${labels}"
                         ENVIRONMENT "CMOCKA_MESSAGE_OUTPUT=STDOUT;FOVEA_SANITIZED=$<BOOL:${FOVEA_SANITIZE}>")
endforeach()

# What the system may refuse, on demand.
foreach(name test_share test_refused)
    target_link_options(${name} PRIVATE -Wl,--wrap=mmap,--wrap=mprotect,--wrap=memfd_create,--wrap=pwrite)
endforeach()
foreach(name test_cold test_scheduler_failures)
    target_link_options(${name} PRIVATE -Wl,--wrap=pwrite)
endforeach()

# The fuzz targets' seeds run in every test run, without libFuzzer.
file(GLOB fuzz_targets CONFIGURE_DEPENDS tests/fuzz/fuzz_*.c)
target_sources(test_seeds PRIVATE ${fuzz_targets} src/app/serve_request.c src/app/serve_head.c)

# Tests that drive the command as its users do.
file(GLOB command_tests CONFIGURE_DEPENDS tests/app/*.sh)
foreach(script ${command_tests})
    get_filename_component(name ${script} NAME_WE)
    add_test(NAME ${name} COMMAND bash ${script} $<TARGET_FILE:fovea> ${PROJECT_SOURCE_DIR})
    set_tests_properties(${name} PROPERTIES TIMEOUT 900 LABELS app
                         ENVIRONMENT "FOVEA_SANITIZED=$<BOOL:${FOVEA_SANITIZE}>")
endforeach()

# Long ones first, so that none is left over at the end.
set_tests_properties(caches serve serve_starts test_conformance test_cold eval test_cpu run compare test_policies test_attend PROPERTIES COST 1000)
