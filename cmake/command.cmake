# The command, and what is made from its own tables: man page and completions.
file(GLOB_RECURSE app_sources CONFIGURE_DEPENDS src/app/*.c)
add_executable(fovea ${app_sources})
target_link_libraries(fovea PRIVATE fovea_static)
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
