# Headers, library, pkg-config file and CMake package.
include(CMakePackageConfigHelpers)

install(TARGETS fovea_shared EXPORT foveaTargets LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/fovea DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT foveaTargets NAMESPACE fovea:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/fovea)
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/foveaConfig.cmake
     "include(\"\${CMAKE_CURRENT_LIST_DIR}/foveaTargets.cmake\")\nadd_library(fovea::fovea ALIAS fovea::fovea_shared)\n")
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/foveaConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/foveaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/foveaConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/fovea)
configure_file(cmake/fovea.pc.in fovea.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fovea.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
