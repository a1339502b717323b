# The command, and what is made from its own tables: man page and completions.
file(GLOB_RECURSE app_sources CONFIGURE_DEPENDS src/app/*.c)
set(page ${CMAKE_CURRENT_BINARY_DIR}/serve_page.c) # the server's page, as bytes
add_custom_command(OUTPUT ${page}
    COMMAND ${CMAKE_COMMAND} -DINPUT=${PROJECT_SOURCE_DIR}/src/app/serve_page.html -DOUTPUT=${page} -DNAME=serve_page
            -DHEADER=app/serve_page.h -P ${PROJECT_SOURCE_DIR}/cmake/embed.cmake
    DEPENDS src/app/serve_page.html cmake/embed.cmake VERBATIM)
add_executable(fovea ${app_sources} ${page})
target_link_libraries(fovea PRIVATE fovea_static PkgConfig::MICROHTTPD)
install(TARGETS fovea RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})

set(help_man ${CMAKE_CURRENT_BINARY_DIR}/fovea.1)
set(help_bash ${CMAKE_CURRENT_BINARY_DIR}/completion/fovea)
set(help_zsh ${CMAKE_CURRENT_BINARY_DIR}/completion/_fovea)
add_custom_command(OUTPUT ${help_man} ${help_bash} ${help_zsh}
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/completion
    COMMAND fovea help --man > ${help_man}
    COMMAND fovea help --bash > ${help_bash}
    COMMAND fovea help --zsh > ${help_zsh}
    DEPENDS fovea VERBATIM)
add_custom_target(fovea_help_files ALL DEPENDS ${help_man} ${help_bash} ${help_zsh})
install(FILES ${help_man} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${help_bash} DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
install(FILES ${help_zsh} DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
